"""A plain prompt of a Llama-style tokenizer: the ids and the text of `transformers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.generation.generate import complete, stream
from llm.generation.loaded_models import Named, Shelf
from llm.generation.request import Request
from llm.model.hf_files import save_model
from llm.params import Decoding
from llm.tokenizer.bpe import Tokenizer
from tests.cli.test_generate import run
from tests.model.conftest import random_model
from tests.tokenizer.test_pretrained import write

PROMPT = "The"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers everything with the same token, which begins with a blank."""
    path, files = (
        tmp_path_factory.mktemp("model"),
        write(tmp_path_factory.mktemp("tokenizer"), "llama-2"),
    )
    tokenizer = Tokenizer.load(files)
    said = json.loads((files / "tokenizer.json").read_text())["model"]["vocab"]["▁laz"]
    model = random_model(vocab_size=tokenizer.vocab_size, tie_word_embeddings=False)
    model.model.embed_tokens.weight.data.fill_(1.0)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    model.lm_head.weight.data.zero_()
    model.lm_head.weight.data[said] = model.model.norm.weight.data
    save_model(model, path, files, tokenizer.eos_id)
    return path


@pytest.fixture(scope="module")
def named(directory: Path) -> Named:
    return Shelf({"m": directory}, torch.device("cpu"), torch.float32).get("m")


@pytest.fixture(scope="module")
def theirs(directory: Path) -> tuple[list[int], str]:
    """The prompt's ids and the whole text that `transformers` makes of it."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    ids = model.generate(inputs.input_ids, max_new_tokens=4, do_sample=False)[0]
    return inputs.input_ids[0].tolist(), tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("beams", [1, 2])
def test_the_command_prints_the_text_of_transformers(
    beams: int, directory: Path, theirs: tuple[list[int], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert theirs[1] == "The laz laz laz laz"
    run(PROMPT, "--model", directory, "--max-new-tokens", "4", "--num-beams", str(beams))
    assert capsys.readouterr().out == theirs[1] + "\n"


def request(named: Named, ids: list[int], **decoding: Any) -> Request:
    return Request(ids, 4, Decoding(**decoding), 0, named.tokenizer.decode_after(ids))


def test_the_decoder_reads_the_ids_of_transformers_and_goes_on_with_its_text(
    named: Named, theirs: tuple[list[int], str]
) -> None:
    ids = named.tokenizer.plain_ids(PROMPT)
    assert ids == theirs[0]
    (answer,) = complete(named.model, [request(named, ids)], named.stop_ids)
    assert answer.text == theirs[1].removeprefix(PROMPT)
    pieces = stream(named.model, request(named, ids), named.stop_ids, named.tokenizer.decode)
    with torch.inference_mode():
        assert "".join(pieces) == answer.text
    stopped = request(named, ids, stop_strings=(" laz",))
    (answer,) = complete(named.model, [stopped], named.stop_ids)
    assert (answer.text, answer.reason) == ("", "stop")


def test_an_answer_in_a_conversation_begins_without_a_blank(named: Named) -> None:
    ids = named.tokenizer.conversation_ids([{"role": "user", "content": "Hi"}])
    (answer,) = complete(named.model, [Request(ids, 2)], named.stop_ids, named.tokenizer.decode)
    assert answer.text == "laz laz"
