"""`python -m llm generate`: a file of prompts in, a file of answers out."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llm.cli import generate
from llm.errors import UserError
from tests import warm
from tests.conftest import ROOT


def run(*options: str | Path) -> None:
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    generate.run(parser.parse_args(list(map(str, options))))


def answers(*options: str | Path, tmp_path: Path) -> list[dict[str, Any]]:
    run(*options, "--output", tmp_path / "out.jsonl", "--max-new-tokens", "9")
    return [
        json.loads(line)
        for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    ]


def test_each_line_gets_the_answer_that_it_gets_alone(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["the cat", "the mat and the dog", "é\u2028x", "\ud800"]
    lines = [json.dumps({"prompt": p, "id": i}, ensure_ascii=i == 3) for i, p in enumerate(prompts)]
    (tmp_path / "prompts.jsonl").write_text("\n\n".join(lines), "utf-8")
    rows = answers(
        "--model", models["base"], "--input", tmp_path / "prompts.jsonl", tmp_path=tmp_path
    )
    assert [(row["id"], row["prompt"], row["model"]) for row in rows] == [
        (i, prompt, str(models["base"])) for i, prompt in enumerate(prompts)
    ]
    assert {row["finish_reason"] for row in rows} <= {"length", "stop"}
    capsys.readouterr()
    for prompt, row in zip(prompts[:3], rows[:3], strict=True):
        run(prompt, "--model", models["base"], "--max-new-tokens", "9")
        assert capsys.readouterr().out == prompt + row["answer"] + "\n"


def test_a_line_of_text_is_a_prompt_and_a_conversation_is_one_too(
    models: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_bytes("the\u2028cat\r\n\r\nthe dog\n".encode())
    plain = answers(
        "--chat", "--model", models["base"], "--input", tmp_path / "prompts.txt", tmp_path=tmp_path
    )
    lines = [
        {"messages": [{"role": "user", "content": prompt}]}
        for prompt in ("the\u2028cat", "the dog")
    ]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    talks = answers(
        "--model", models["base"], "--input", tmp_path / "talks.jsonl", tmp_path=tmp_path
    )
    assert [row["prompt"] for row in plain] == ["the\u2028cat", "the dog"]
    assert [row["answer"] for row in plain] == [row["answer"] for row in talks]


def test_each_of_several_adapters_answers(models: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in models["skill"].iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (tmp_path / "prompts.txt").write_text("the cat\n")
    chosen = ("--model", models["base"], "--input", tmp_path / "prompts.txt")
    rows = answers(*chosen, "--adapter", models["skill"], "--adapter", other, tmp_path=tmp_path)
    assert [row["model"] for row in rows] == [str(models["skill"]), str(other)]
    assert (
        rows[0]["answer"] == rows[1]["answer"] != answers(*chosen, tmp_path=tmp_path)[0]["answer"]
    )


def test_draws_have_a_seed_for_each_line(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("the\nthe\n")
    options = (
        "--model",
        models["base"],
        "--input",
        tmp_path / "prompts.txt",
        "--temperature",
        "1.5",
    )
    first = answers(*options, tmp_path=tmp_path)
    assert first[0]["answer"] != first[1]["answer"]
    assert answers(*options, tmp_path=tmp_path) == first
    assert answers(*options, "--seed", "1", tmp_path=tmp_path)[0]["answer"] == first[1]["answer"]


def test_columns_of_the_user_are_kept(models: dict[str, Path], tmp_path: Path) -> None:
    for column in ("answer", "model", "finish_reason"):
        lines = [{"prompt": "the cat"}, {"prompt": "the dog", column: "mine"}]
        source = tmp_path / f"{column}.jsonl"
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(
            UserError, match=rf"line 2 has a column '{column}' already, .* with --prefix"
        ):
            run("--model", "not looked at", "--input", source, "--output", tmp_path / "none.jsonl")
        assert not (tmp_path / "none.jsonl").exists()
        rows = answers(
            "--model",
            models["base"],
            "--input",
            source,
            "--prefix",
            "generated_",
            tmp_path=tmp_path,
        )
        assert rows[1][column] == "mine"
        assert list(rows[0]) == [
            "prompt",
            "generated_model",
            "generated_answer",
            "generated_finish_reason",
        ]


def test_a_conversation_may_hold_replies_as_clients_keep_them(
    models: dict[str, Path], tmp_path: Path
) -> None:
    user = {"role": "user", "content": "the cat"}
    said = {"role": "assistant", "content": None, "refusal": None, "tool_calls": None}
    lines = [
        {"messages": [user, reply, user]} for reply in (said, {"role": "assistant", "content": ""})
    ]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = answers(
        "--model", models["base"], "--input", tmp_path / "talks.jsonl", tmp_path=tmp_path
    )
    assert rows[0]["answer"] == rows[1]["answer"]
    assert rows[0]["messages"] == [user, said, user]


def test_a_link_stays_a_link_and_a_pipe_gets_the_answers(
    models: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("the cat\n")
    options = ("--model", models["base"], "--input", tmp_path / "prompts.txt")
    expected = answers(*options, tmp_path=tmp_path)
    (tmp_path / "out.jsonl").rename(tmp_path / "elsewhere.jsonl")
    (tmp_path / "elsewhere.jsonl").write_text("old")
    (tmp_path / "out.jsonl").symlink_to("elsewhere.jsonl")
    assert answers(*options, tmp_path=tmp_path) == expected
    assert (tmp_path / "out.jsonl").is_symlink()
    assert not (tmp_path / "elsewhere.jsonl").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as threads:
        reader = threads.submit((tmp_path / "pipe").read_text)
        run(*options, "--output", tmp_path / "pipe", "--max-new-tokens", "9")
        assert json.loads(reader.result(60)) == expected[0]
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("shell", ["> all.jsonl", ">> all.jsonl", "| cat > all.jsonl"])
def test_the_standard_output_can_be_the_output(
    models: dict[str, Path], tmp_path: Path, shell: str
) -> None:
    (tmp_path / "prompts.txt").write_text("the cat\n")
    (tmp_path / "all.jsonl").write_text("before\n")
    options = (
        f"--model {models['base']} --input prompts.txt --output /dev/stdout --max-new-tokens 9"
    )
    command = f"{warm.python()} -m llm generate {options} {shell}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, check=True, capture_output=True
    )
    lines = (tmp_path / "all.jsonl").read_text().splitlines()
    assert lines[:-1] == (["before"] if ">>" in shell else [])
    assert json.loads(lines[-1])["prompt"] == "the cat"


def test_what_the_output_would_overwrite_is_said_before_anything_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("the cat\n")
    (tmp_path / "link").symlink_to("prompts.txt")
    for output, message in (
        (tmp_path, "is a directory; expected a file"),
        (tmp_path / "link", "is the file of --input"),
    ):
        with pytest.raises(UserError, match=message):
            run("--model", "not looked at", "--input", tmp_path / "prompts.txt", "--output", output)
    assert (tmp_path / "prompts.txt").read_text() == "the cat\n"


WRONG = {
    "a.txt": (" \n", "a.txt holds no prompts"),
    "b.jsonl": ('{"prompt": "a"}\n{"prompt"', "b.jsonl, line 2 is not valid JSON"),
    "c.jsonl": (
        '{"text": "a"}',
        "c.jsonl, line 1: expected an object with either `prompt` or `messages`",
    ),
    "d.jsonl": ('{"prompt": 3}', "d.jsonl, line 1: prompt is int; expected a string"),
    "e.jsonl": ('{"messages": []}', "e.jsonl, line 1: messages must be a list"),
    "f.jsonl": (
        '{"messages": [{"role": "user"}]}',
        "f.jsonl, line 1: messages.0.content is None; expected a string",
    ),
    "g.jsonl": ('{"messages": [{"role": "bot", "content": ""}]}', "unknown role 'bot'"),
    "h.csv": ("a,b", "h.csv: expected a .txt file with a prompt on each line, or a .jsonl file"),
    "i.txt": ("the cat\n" + "x" * 999, "prompt 2 has 999 tokens; the context of base holds 256"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_line_is_named_and_nothing_is_written(
    models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    content, message = WRONG[name]
    (tmp_path / name).write_text(content)
    (tmp_path / "out.jsonl").write_text("as it was")
    with pytest.raises(UserError, match=re.escape(message)):
        run(
            "--model",
            models["base"],
            "--input",
            tmp_path / name,
            "--output",
            tmp_path / "out.jsonl",
        )
    assert (tmp_path / "out.jsonl").read_text() == "as it was"


@pytest.mark.parametrize("options", [(), ("--num-beams", "3"), ("--temperature", "2")])
def test_answers_are_spans_of_a_text_or_of_a_field(
    models: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
) -> None:
    chosen = ("--model", models["base"], "--max-new-tokens", "9", *options)
    run("Where? On", *chosen, "--spans-of", "the mat and the dog")
    answer = capsys.readouterr().out.removeprefix("Where? On").strip()
    assert answer
    assert set(answer.split()) <= {"the", "mat", "and", "dog"}
    assert answer in "the mat and the dog"
    (tmp_path / "prompts.jsonl").write_text(
        '{"prompt": "the cat", "text": "the mat"}\n'
        '{"messages": [{"role": "user", "content": "the dog"}], "text": "a dog (or cat)"}\n'
    )
    asked = ("--input", tmp_path / "prompts.jsonl", "--spans-of", "text")
    rows = answers("--model", models["base"], *options, *asked, tmp_path=tmp_path)
    for row in rows:
        assert row["answer"].strip()
        assert row["answer"].strip() in row["text"]
    (tmp_path / "prompts.txt").write_text("the cat and the dog\n")
    asked = ("--input", tmp_path / "prompts.txt", "--spans-of", "prompt")
    (row,) = answers("--model", models["base"], *options, *asked, tmp_path=tmp_path)
    assert row["answer"].strip() in "the cat and the dog"


@pytest.mark.parametrize("record", ['{"prompt": "b"}', '{"prompt": "b", "text": 3}'])
def test_a_record_without_the_text_whose_spans_are_the_answers_is_named(
    models: dict[str, Path], tmp_path: Path, record: str
) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "text": "b"}\n' + record)
    output = tmp_path / "out.jsonl"
    asked = ("--input", tmp_path / "p.jsonl", "--output", output, "--spans-of", "text")
    with pytest.raises(UserError, match=r"p\.jsonl, record 2: 'text' is .*; expected a text"):
        run("--model", models["base"], *asked)
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("a", "--spans-of", " "), "--spans-of: it is empty; expected a text with words"),
        ((), "give a prompt, or a file of them"),
        (("a", "--input", "b.txt"), "give a prompt, or a file of them"),
        (("--input", "b.txt"), "--input and --output go together"),
        (("a", "--output", "b.jsonl"), "--input and --output go together"),
        (("a", "--max-new-tokens", "0"), "--max-new-tokens is 0"),
        (("a", "--top-p", "0.5"), "give a temperature above 0"),
        (("a", "--adapter", "nowhere"), "nowhere/adapter_config.json: no such file"),
        (("--input", "nowhere.txt", "--output", "b.jsonl"), "nowhere.txt cannot be read"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    models: dict[str, Path], options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        run("--model", models["base"], *options)
