"""What the pages tell people to type and to open is there: commands, options, params, files, tests."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import yaml

from llm.__main__ import parser

ROOT = Path(__file__).parents[1]
OLDER = ("LOG.md", "CHANGELOG.md")  # what these name may be gone
PAGES = [
    path
    for folder in (ROOT, ROOT / "docs")
    for path in sorted(folder.glob("*.md"))
    if path.name not in OLDER
]
USAGE, ARCHITECTURE = ROOT / "docs/USAGE.md", ROOT / "docs/ARCHITECTURE.md"
FOLDERS = "(?:llm|stages|tests|bench|presets|scaling|techniques|docs)"


def on_pages(pattern: str, at_least: int) -> list[tuple[Path, str]]:
    """Return page and text of every match; fewer than `at_least` mean that the pattern went blind."""
    matches = [
        (page, "".join(match))
        for page in PAGES
        for match in re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(matches) >= at_least
    return matches


def test_commands_have_the_options_that_the_pages_give_them() -> None:
    for _, command in on_pages(r"python -m llm ([a-z][^`\n]*)", 30):
        words = shlex.split(command.split("  ")[0].rstrip(" …|)"), comments=True)
        assert (
            parser().parse_args(words).command == words[0]
        )  # or argparse ends the test with what it says


def test_params_that_are_set_on_a_page_are_in_the_file() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for page, key in on_pages(r"(?:-S|--set-param) '?([\w.]+)=", 8):
        node: Any = params
        for part in key.split("."):
            assert part in node, (page, key)
            node = node[part]


def test_the_table_of_params_states_the_defaults_of_the_file() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    rows = re.findall(
        r"^\| (`[\w.`, ]+`) \| ([\d., ]+) \|", USAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) >= 7
    for cell, values in rows:
        first, *others = re.findall(r"`([\w.]+)`", cell)
        names = [first, *(f"{first.rpartition('.')[0]}.{other}" for other in others)]
        for name, value in zip(names, values.split(", "), strict=True):
            node: Any = params
            for part in name.split("."):
                node = node[part]
            assert float(value.replace(",", "")) == node, name


def test_files_that_are_named_on_a_page_are_there() -> None:
    named = on_pages(rf"(?<![\w./-])({FOLDERS}/[\w./-]*\w)(?![\w<*…])", 100)
    assert [
        (page, path) for page, path in named if "NAME" not in path and not (ROOT / path).exists()
    ] == []


def test_every_change_of_the_table_names_one_file_in_which_its_word_stands() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| (`[^|]+`) \| ([^|]+) \|", text, re.MULTILINE)
    assert len(rows) == 17
    for change, cell, hint in rows:
        files, words = re.findall(r"`([^`]+)`", cell), re.findall(r"`([^`]+)`", hint)
        assert len(files) == 1, change
        content = (ROOT / files[0]).read_text(encoding="utf-8")
        assert not words or words[0] in content, (change, words[0])


def test_the_layers_on_the_page_are_those_of_the_contract() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = contract["tool"]["importlinter"]["contracts"][0]["layers"]
    text = ARCHITECTURE.read_text(encoding="utf-8").split("## Layers")[1].split("```")[1]
    assert [re.split(r"  +", line)[0] for line in text.strip().splitlines()] == layers


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    linked = re.findall(r"^\| \[[^]]+\]\(([^)]+)\)", index, re.MULTILINE)
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert sorted(linked) == sorted(pages)


def test_the_readme_fits_three_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100


def test_links_lead_somewhere() -> None:
    links = [
        (page, *link.partition("#")[::2])
        for page, link in on_pages(r"\]\(([^)]+)\)", 12)
        if "://" not in link
    ]
    for page, path, anchor in links:
        target = page.parent / path if path else page
        assert target.exists(), (page, path)
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [
                re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings
            ]
            assert anchor in anchors, (page, path, anchor)


def test_make_has_the_goals_of_the_pages() -> None:
    goals = re.findall(
        r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert {goal for _, goal in on_pages(r"`make ([a-z-]+)|^make ([a-z-]+)", 8)} <= set(goals)


def test_tests_that_are_named_on_a_page_are_there() -> None:
    tests = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")
    )
    for page, name in on_pages(r"pytest tests/[\w./]+ -k (\w+)", 1):
        assert re.search(rf"def test_\w*{name}", tests), (page, name)
