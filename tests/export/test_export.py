"""What leaves: GGUF that others read as the same function, a plain state dict, and a card that says
where from.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from llm.errors import UserError
from llm.export import default_directory, export
from llm.model.dora import add_dora
from llm.model.hf_files import load_model, save_model
from llm.model.ia3 import add_ia3, save_ia3
from llm.model.lora import add_lora
from llm.model.lora_files import save_lora
from llm.runtime.io import sha256, write_json
from llm.tokenizer.bpe import Tokenizer
from tests.model.conftest import random_model

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-untied": {"tie_word_embeddings": False, "num_key_value_heads": 4},
    "mistral": {"stock_class": "MistralForCausalLM"},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "head_dim": 128},  # the only size that transformers' reader assumes
}


def model_directory(path: Path, **changes: Any) -> Path:
    model, tokenizer = (
        random_model(0, **changes),
        Tokenizer.train(["the cat sat on the mat " * 3], 300),
    )
    path.mkdir(parents=True)
    save_model(model, path, path, tokenizer.eos_id)
    tokenizer.save(path)
    return path


@pytest.mark.parametrize("kind", list(KINDS))
def test_gguf_is_read_by_transformers_as_the_same_function(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the extra `export`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    directory = model_directory(tmp_path / "model", **KINDS[kind])
    out = export("gguf", directory, tmp_path / "out", "f32")
    (path,) = out.glob("*.gguf")
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        out, gguf_file=path.name, dtype=torch.float32
    ).eval()
    ids = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs, ours = peer(ids).logits, load_model(directory)(ids)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_llama_gets_its_stretched_positions_and_its_biases_in_the_order_of_its_rows(
    tmp_path: Path,
) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra `export`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    directory = model_directory(tmp_path / "model", rope_scaling=LLAMA3, attention_bias=True)
    (path,) = export("gguf", directory, tmp_path / "out").glob("*.gguf")
    tensors = {
        tensor.name: torch.from_numpy(tensor.data.copy())
        for tensor in gguf.GGUFReader(path).tensors
    }
    bias = load_model(directory).model.layers[1].self_attn.q_proj.bias.detach()
    order = [16 * head + i + 8 * half for head in range(4) for i in range(8) for half in (0, 1)]
    assert torch.equal(tensors["blk.1.attn_q.bias"], bias[order])
    config = transformers.AutoConfig.from_pretrained(directory)
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    plain = 1.0 / 10000.0 ** (torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(tensors["rope_freqs.weight"], plain / rotary.inv_freq)
    assert tensors["rope_freqs.weight"].max() == pytest.approx(8.0)


@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
def test_tensors_come_back_within_their_rounding_and_the_bytes_are_the_same_each_time(
    dtype: str, tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra `export`")
    directory = model_directory(tmp_path / "model", qk_norm=True)
    (path,) = export("gguf", directory, tmp_path / "a" / "model", dtype).glob("*.gguf")
    (again,) = export("gguf", directory, tmp_path / "b" / "model", dtype).glob("*.gguf")
    assert sha256(path) == sha256(again)
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    weights = load_model(directory).state_dict()
    up = tensors["blk.1.ffn_up.weight"]
    assert up.tensor_type.name == {"f16": "F16", "q8_0": "Q8_0"}[dtype]
    read = gguf.quants.dequantize(up.data, up.tensor_type).reshape(96, 64)
    largest = float(weights["model.layers.1.mlp.up_proj.weight"].abs().max())
    error = np.abs(read - weights["model.layers.1.mlp.up_proj.weight"].numpy()).max()
    assert 0 < error < largest * {"f16": 2**-11, "q8_0": 0.6 / 127}[dtype]
    assert tensors["output_norm.weight"].tensor_type.name == "F32"
    tokens = reader.fields["tokenizer.ggml.tokens"]
    assert len(tokens.data) == 300
    template = bytes(reader.fields["tokenizer.chat_template"].parts[-1]).decode()
    assert (
        template == json.loads((directory / "tokenizer_config.json").read_text())["chat_template"]
    )


def test_a_tensor_that_does_not_come_back_is_noticed(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra `export`")
    from llm.export.gguf_file import _tensors, check_gguf

    directory = model_directory(tmp_path / "model", qk_norm=True)
    (path,) = export("gguf", directory, tmp_path / "out", "q8_0").glob("*.gguf")
    model = load_model(directory)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 3)
    written = {names.get_name(key, (".weight",)): key for key, _ in _tensors(model, False)}
    check_gguf(path, model, written, False)
    model.model.layers[0].mlp.up_proj.weight.data[3, 5] += 0.1
    with pytest.raises(UserError, match=r"blk\.0\.ffn_up"):
        check_gguf(path, model, written, False)


def test_sentencepiece_merges_become_scores_in_their_order(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra `export`")
    from tests.tokenizer.test_pretrained import write

    directory = model_directory(tmp_path / "model", vocab_size=500)
    (directory / "ranks.tiktoken").unlink()
    write(directory, "llama-2")
    (path,) = export("gguf", directory, tmp_path / "out").glob("*.gguf")
    fields = gguf.GGUFReader(path).fields
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    tokens, scores = (
        fields["tokenizer.ggml.tokens"].contents(),
        fields["tokenizer.ggml.scores"].contents(),
    )
    content = json.loads((directory / "tokenizer.json").read_text())
    merged = ["".join(merge) for merge in content["model"]["merges"]]
    order = [scores[tokens.index(token)] for token in merged]
    assert order == sorted(order, reverse=True)
    assert len(tokens) == 500
    assert tokens[-1].startswith("[PAD")
    assert fields["tokenizer.ggml.bos_token_id"].contents() == 1
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True  # as its tokenizer.json has it
    assert "in a message or a text are special tokens" in (path.parent / "README.md").read_text()


def test_a_state_dict_loads_without_running_code(tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "model")
    out = export("pt", directory, tmp_path / "out")
    tensors = torch.load(out / "model.pt", weights_only=True)
    expected = load_model(directory).state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())
    assert sha256(export("pt", directory, tmp_path / "again") / "model.pt") == sha256(
        out / "model.pt"
    )
    assert {"README.md", "config.json", "tokenizer.json", "tokenizer_config.json"} <= {
        p.name for p in out.iterdir()
    }


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("form", ["hf", "gguf", "pt"])
def test_an_adapter_is_merged_on_the_way_out(method: str, form: str, tmp_path: Path) -> None:
    if form == "gguf":
        pytest.importorskip("gguf", reason="needs the extra `export`")
    directory = model_directory(tmp_path / "model")
    model = load_model(directory)
    (tmp_path / "adapter").mkdir()
    if method == "ia3":
        add_ia3(model)
        save = partial(save_ia3, base="b")
    else:
        (add_dora if method == "dora" else add_lora)(model, 4, 8.0, 0.0, ["q_proj"], 0)
        lora = {"r": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": ["q_proj"]}
        save = partial(save_lora, lora=lora, base="b")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            parameter.data += 0.1
    save(model, tmp_path / "adapter")
    out = export(form, directory, tmp_path / "out", "f32", tmp_path / "adapter")
    assert "adapter" in (out / "README.md").read_text()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = model.eval()(ids)
        assert (expected - load_model(directory)(ids)).abs().max() > 0.01
        if form == "hf":
            merged = load_model(out)
        elif form == "gguf":
            transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
            file = next(out.glob("*.gguf")).name
            stock = transformers.AutoModelForCausalLM.from_pretrained(out, gguf_file=file)
            torch.testing.assert_close(stock(ids).logits, expected, rtol=1e-4, atol=1e-4)
            return
        else:
            merged = load_model(directory)
            merged.load_state_dict(torch.load(out / "model.pt", weights_only=True))
        torch.testing.assert_close(merged(ids), expected, rtol=1e-5, atol=1e-5)


def test_the_card_has_data_params_scores_with_intervals_and_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = model_directory(Path("models/finetuned"))
    manifest = {
        "source": "files",
        "licence": "CC BY 4.0",
        "revision": None,
        "rows": 1234,
        "bytes": 56789,
    }
    write_json("data/raw/pretrain/manifest.json", manifest)
    Path("params.yaml").write_text("seed: 7\npretrain: {tokens: 99}\nreport: {samples: 1}\n")
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 30, "signature": "exact match|v1"}
    write_json(
        "metrics/evaluate.json",
        {
            "finetuned": {"qa": {"f1": score}},
            "baseline:random": {"qa": {"f1": {**score, "value": 0.1}}},
            "contamination": {"qa": 0.0125},
        },
    )
    out = export("hf", directory, Path("exports/one"))
    card = (out / "README.md").read_text()
    assert "plain text to `apply_chat_template`" in card
    for expected in (
        "CC BY 4.0", "1,234", sha256("data/raw/pretrain/manifest.json"), "tokens: 99", "0.4 … 0.6", "random 0.1",
        "exact match|v1", "1.2%", sha256(directory / "model.safetensors"), "LlamaForCausalLM",
    ):  # fmt: skip
        assert expected in card, expected
    assert "samples" not in card
    first = (out / "README.md").read_bytes()
    export("hf", directory, Path("exports/one"))
    assert (out / "README.md").read_bytes() == first
    Path("metrics/evaluate.json").unlink()
    export("hf", directory, Path("exports/one"))
    assert "## Scores" not in (out / "README.md").read_text()


def test_nothing_that_export_did_not_write_is_deleted(tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "model")
    mine = tmp_path / "mine"
    (mine / ".git").mkdir(parents=True)
    (mine / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (mine / "README.md").write_text("my project")
    with pytest.raises(
        UserError,
        match=r"mine holds \.git/HEAD and no export\.json: .* Name another directory with",
    ):
        export("pt", directory, mine)
    assert (mine / "README.md").read_text() == "my project"

    out = export("pt", directory, tmp_path / "out")
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    export("pt", directory, out)  # its own files it replaces
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    for name, content in (
        ("notes/thesis.txt", "do not delete"),
        ("README.md", "my own words about it"),
    ):
        old = (out / name).read_text() if (out / name).exists() else None
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(content)
        with pytest.raises(UserError, match=rf"out/{name} was added or changed after the export"):
            export("pt", directory, out)
        assert (out / name).read_text() == content
        (out / name).write_text(old) if old else (out / name).unlink()
    export("pt", directory, out)
    with pytest.raises(
        UserError, match=r"out holds another export \(to pt, model .*; this one is to hf, model "
    ):
        export("hf", directory, out)
    assert (out / "model.pt").exists()


def test_a_link_to_a_directory_stays_a_link(tmp_path: Path) -> None:
    directory, disk = model_directory(tmp_path / "model"), tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "out").symlink_to(disk)
    for _ in range(2):
        export("pt", directory, tmp_path / "out")
        assert (tmp_path / "out").is_symlink()
        assert (disk / "model.pt").exists()


def test_each_form_type_and_adapter_has_a_default_directory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf", reason="needs the extra `export`")
    from llm.__main__ import main

    model_directory(tmp_path / "models" / "finetuned")
    monkeypatch.chdir(tmp_path)
    for options in (["gguf"], ["gguf", "--dtype", "q8_0"], ["pt"], ["hf"]):
        monkeypatch.setattr("sys.argv", ["llm", "export", "--to", *options])
        main()
    assert sorted(path.name for path in Path("exports").iterdir()) == [
        "finetuned-gguf-f16", "finetuned-gguf-q8_0", "finetuned-hf", "finetuned-pt",
    ]  # fmt: skip
    assert [path.name for path in sorted(Path("exports").glob("*/*.gguf"))] == [
        "finetuned-gguf-f16.gguf", "finetuned-gguf-q8_0.gguf",
    ]  # fmt: skip
    adapter = default_directory("hf", Path("models/base"), "f16", Path("models/adapter"))
    assert adapter == Path("exports/base-adapter-hf")


def test_the_card_names_what_reads_the_form_and_where_the_licence_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf", reason="needs the extra `export`")
    monkeypatch.chdir(tmp_path)
    directory = model_directory(Path("models/finetuned"))
    source = {"source": "hub", "id": "someone/a|b", "config": None}
    about = {"source": source, "licence": "CC BY 4.0", "revision": "abc1234", "rows": 1, "bytes": 2}
    write_json("data/raw/pretrain/manifest.json", about)
    for to, library in (("hf", "transformers"), ("gguf", "gguf"), ("pt", "pytorch")):
        out = export(to, directory, Path("exports") / to)
        text = (out / "README.md").read_text()
        front = yaml.safe_load(text.split("---")[1])
        assert (front["library_name"], front["model_name"]) == (library, to)
        assert (front["license"], front["license_link"]) == ("other", "LICENSE.md")
        assert "- CC BY 4.0" in (out / "LICENSE.md").read_text()
        assert r"| pretrain | Hugging Face: someone/a\|b, default | abc1234 | 1 |" in text
        limit = json.loads((out / "tokenizer_config.json").read_text())["model_max_length"]
        assert (
            limit == json.loads((directory / "config.json").read_text())["max_position_embeddings"]
        )
    assert Tokenizer.load(Path("exports/hf")).vocab_size == Tokenizer.load(directory).vocab_size


def test_the_card_s_metadata_is_read_by_huggingface_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import ModelCard

    monkeypatch.chdir(tmp_path)
    directory = model_directory(Path("models/finetuned"))
    hub = {"source": "hub", "id": "rajpurkar/squad", "config": None}
    sources = {"a": hub, "b": {"source": "files", "paths": ["x.txt"]}}
    for name, source in (
        ("pretrain", {"source": "mixture", "sources": sources}),
        ("question_answering", hub),
        ("summarization", {"source": "docs"}),
    ):
        about = {"source": source, "licence": "CC BY 4.0", "revision": None, "rows": 1, "bytes": 2}
        write_json(f"data/raw/{name}/manifest.json", about)
    Path("params.yaml").write_text(
        "checkpoints: {small: {id: org/small-model, revision: abc}}\n"
        "pretrain: {init: models/checkpoints/small}\nfinetune: {base: models/base}\n"
    )
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 30, "signature": "s"}
    qa = {"f1": score, "truncated": score}
    scores = {"question_answering": qa, "summarization": {"rouge1": {**score, "value": 0.25}}}
    write_json("metrics/evaluate.json", {"finetuned": scores, "contamination": {}})
    out = export("hf", directory, Path("exports/one"))
    data = ModelCard.load(out / "README.md").data
    assert (data.base_model, data.datasets) == ("org/small-model", ["rajpurkar/squad"])
    assert (data.license, data.license_link) == ("other", "LICENSE.md")
    f1, rouge = data.eval_results
    assert (f1.dataset_type, f1.metric_type, f1.metric_value) == ("rajpurkar/squad", "f1", 0.5)
    assert (f1.metric_name, f1.metric_args) == ("F1", {k: score[k] for k in score if k != "value"})
    assert (rouge.dataset_type, rouge.metric_value) == ("summarization", 0.25)

    Path("params.yaml").write_text(
        "checkpoints: {small: {id: org/small-model, revision: abc}}\n"
        "pretrain: {init: data/tokenizer}\nfinetune: {base: models/checkpoints/small}\n"
    )
    assert ModelCard.load(export("hf", directory, out) / "README.md").data.base_model == (
        "org/small-model"
    )
    base = export("hf", model_directory(Path("models/base")), Path("exports/base"))
    data = ModelCard.load(base / "README.md").data
    assert (data.base_model, data.eval_results) == (None, None)


def test_the_commands_that_take_it_elsewhere_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf", reason="needs the extra `export`")
    from llm.__main__ import main

    model_directory(tmp_path / "models" / "finetuned")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["llm", "export", "--to", "gguf"])
    main()
    printed = capsys.readouterr().out
    assert "splitting rule" not in printed
    assert printed.splitlines()[-3:] == [
        "export: exports/finetuned-gguf-f16",
        "  hf upload YOUR_NAME/finetuned-gguf-f16 exports/finetuned-gguf-f16",
        "  ollama create finetuned-gguf-f16 -f exports/finetuned-gguf-f16/Modelfile",
    ]
    lines = Path("exports/finetuned-gguf-f16/Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./finetuned-gguf-f16.gguf"
    assert Path("exports/finetuned-gguf-f16", lines[0].removeprefix("FROM ")).is_file()
    (template,) = [line for line in lines if line.startswith("TEMPLATE")]
    for role, token in (("system", "<|system|>"), ("user", "<|user|>")):
        assert f'.Role "{role}" }}}}{token}{{{{ .Content }}}}' in template
    assert template.endswith('{{ .Content }}<|endoftext|>{{ end }}{{ end }}<|assistant|>"""')
    assert {"PARAMETER stop <|endoftext|>", "PARAMETER num_ctx 64"} <= set(lines)


def test_a_splitting_rule_that_llama_cpp_lacks_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra `export`")
    directory = model_directory(tmp_path / "model")
    (path,) = export("gguf", directory, tmp_path / "a").glob("*.gguf")
    assert gguf.GGUFReader(path).fields["tokenizer.ggml.pre"].contents() == "llama-bpe"
    assert "splitting rule" not in capsys.readouterr().out
    Tokenizer(Tokenizer.load(directory).ranks, r"\S+|\s+").save(directory)
    (path,) = export("gguf", directory, tmp_path / "b").glob("*.gguf")
    assert gguf.GGUFReader(path).fields["tokenizer.ggml.pre"].contents() == "default"
    assert "no splitting rule like that of" in capsys.readouterr().out


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the extra `export`")
    window = model_directory(tmp_path / "window", sliding_window=7)
    with pytest.raises(UserError, match="looks back 7"):
        export("gguf", window, tmp_path / "out")
    large = model_directory(tmp_path / "large")
    model = load_model(large)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e5
    (tmp_path / "beyond").mkdir()
    save_model(model, tmp_path / "beyond", large, 0)
    with pytest.raises(UserError, match="float16"):
        export("gguf", tmp_path / "beyond", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not delete")
    with pytest.raises(UserError, match="--out"):
        export("pt", large, tmp_path / "mine")
    with pytest.raises(UserError, match="the model itself"):
        export("pt", large, large)
    assert (large / "model.safetensors").exists()
