"""GGUF, the one-file format of llama.cpp and Ollama, written with its own package and read back
tensor by tensor.

Names and layout are those of llama.cpp's converter: `LlamaForCausalLM` and `MistralForCausalLM`
become its `llama`, whose rotary pairs are neighbours, so the rows of q_proj and k_proj are put in
that order; the Qwens keep theirs."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from llm.errors import UserError
from llm.model.config import Config
from llm.model.rope import frequencies
from llm.model.transformer import Transformer
from llm.runtime.io import read_json
from llm.tokenizer.bpe import CHAT_TEMPLATE, GPT2_PATTERN, PATTERN, SPECIAL, Tokenizer
from llm.tokenizer.pretrained import PretrainedTokenizer

BLOCK = 32  # weights that share a scale in q8_0
LARGEST = 65504.0  # of float16
PLAIN = "default"
# How llama.cpp splits text before the merges is compiled into it, by name; these are the ones that
# we can tell apart.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
MARKS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    GPT2_PATTERN: "gpt-2",
    PATTERN: "llama-bpe",
    WORDS + r"\p{N}{1,3}" + MARKS: "llama-bpe",
    WORDS + r"\p{N}" + MARKS: "qwen2",
}


def write_gguf(model: Transformer, directory: Path, path: Path, dtype: str) -> None:
    """Write `model`, whose directory has config and tokenizer, as a GGUF file.

    dtype: of the matrices, f32 | f16 | q8_0 (rows that are no multiple of 32 stay f16); vectors are
        float32.

    Raises:
        UserError: the package is missing, a weight does not fit float16, the tokenizer is of no
            kind that GGUF knows, or a tensor is not the same when it is read back.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError(
            "--to gguf needs the package gguf: pip install -c constraints.txt -e '.[export]'."
        )
    import gguf

    config = model.config
    llama = config.architecture in ("LlamaForCausalLM", "MistralForCausalLM")
    name = (
        "llama"
        if llama
        else {"Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}[config.architecture]
    )
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    writer = gguf.GGUFWriter(path, name)
    _add_dimensions(writer, config, path.stem, dtype)
    _add_tokenizer(writer, directory)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    written = {}
    for key, values in _tensors(model, llama):
        target = (
            key
            if key == "rope_freqs.weight"
            else names.get_name(key, try_suffixes=(".weight", ".bias"))
        )
        if target is None:
            raise UserError(
                f"{path}: {key} has no place in a GGUF file of the architecture {name}."
            )
        kind = _kind(gguf, values, dtype)
        if kind == gguf.GGMLQuantizationType.F16 and np.abs(values).max() > LARGEST:
            raise UserError(
                f"{path}: {key} has a value beyond {LARGEST:,.0f}, the largest of float16; use --dtype f32."
            )
        writer.add_tensor(target, gguf.quants.quantize(values, kind), raw_dtype=kind)
        written[target] = key
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_gguf(path, model, written, llama)


def check_gguf(path: Path, model: Transformer, written: dict[str, str], llama: bool) -> None:
    """Read a GGUF file again and compare every tensor with the model's.

    Bounds: float32 exact; float16 as numpy rounds; q8_0 half a step of its block's scale, max|w| /
        127, and that
    scale's own rounding to float16 (2^-11, times up to 127 steps).

    Raises:
        UserError: a tensor is missing, has another shape, or is further off.
    """
    import gguf

    expected = dict(_tensors(model, llama))
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    if set(found) != set(written):
        raise UserError(
            f"{path}: tensors {sorted(set(found) ^ set(written))} are missing or too many."
        )
    for target, key in written.items():
        tensor, values = found[target], expected[key]
        if tuple(int(n) for n in reversed(tensor.shape)) != values.shape:
            raise UserError(
                f"{path}: {target} has the shape {list(tensor.shape)}, expected that of {key}."
            )
        read = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(values.shape)
        if tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0:
            scale = np.abs(values.reshape(-1, BLOCK)).max(1, keepdims=True) / 127
            far = (
                np.abs((read - values).reshape(-1, BLOCK))
                > scale * (0.5 + 127 * 2.0**-11) + 2.0**-24 * 128
            )
            same = not far.any()
        else:
            exact = (
                values
                if tensor.tensor_type == gguf.GGMLQuantizationType.F32
                else values.astype(np.float16)
            )
            same = np.array_equal(read, exact.astype(np.float32))
        if not same:
            raise UserError(
                f"{path}: {target} is not {key} when it is read back; is the disk in order?"
            )


def _tensors(model: Transformer, llama: bool) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32 values) in Hugging Face's names, one at a time, in GGUF's order of rows."""
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.detach().float()
        part = name.split(".")[-2]
        if llama and part in heads:
            values = _neighbours(values, heads[part])
        yield name, values.contiguous().numpy()
    if config.rope_scaling and config.rope_scaling["rope_type"] == "llama3":
        plain, _ = frequencies(config.head_dim, config.rope_theta, None)
        stretched, _ = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        yield "rope_freqs.weight", (plain / stretched).numpy()


def _neighbours(weight: Tensor, heads: int) -> Tensor:
    """Rows (i, i + head_dim/2) of each head side by side, of a matrix (heads · head_dim, …) or its
    bias.
    """
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        .transpose(1, 2)
        .reshape(weight.shape)
    )


def _kind(gguf: Any, values: np.ndarray, dtype: str) -> Any:
    kinds = gguf.GGMLQuantizationType
    if values.ndim < 2 or dtype == "f32":
        return kinds.F32
    return kinds.Q8_0 if dtype == "q8_0" and values.shape[-1] % BLOCK == 0 else kinds.F16


def _add_dimensions(writer: Any, config: Config, name: str, dtype: str) -> None:
    import gguf

    files = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16}
    writer.add_name(name)
    writer.add_file_type(files.get(dtype, gguf.LlamaFileType.MOSTLY_Q8_0))
    if dtype == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    if config.sliding_window and config.sliding_window < config.max_position_embeddings:
        raise UserError(
            f"the model looks back {config.sliding_window} tokens, which llama.cpp's `llama` does not: beyond them it "
            "would compute another function. Export with --to hf."
        )
    scaling = config.rope_scaling
    if scaling and scaling["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(scaling["factor"]))
    elif scaling and scaling["rope_type"] == "yarn":
        odd = {"mscale", "mscale_all_dim", "attention_factor"} & {
            k for k, v in scaling.items() if v is not None
        }
        if odd or not scaling.get("truncate", True):
            raise UserError(
                f"yarn with {', '.join(sorted(odd)) or 'truncate = false'} has no GGUF form known here."
            )
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(scaling["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(scaling["original_max_position_embeddings"]))
        writer.add_rope_scaling_yarn_beta_fast(float(scaling.get("beta_fast") or 32))
        writer.add_rope_scaling_yarn_beta_slow(float(scaling.get("beta_slow") or 1))


def _add_tokenizer(writer: Any, directory: Path) -> None:
    """Tokens, merges or scores, special ids and the chat template."""
    import gguf

    tokenizer = Tokenizer.load(directory)
    content = read_json(directory / "tokenizer.json")
    bpe, config = content["model"], read_json(directory / "config.json")
    if bpe.get("type") != "BPE":
        raise UserError(
            f"{directory}/tokenizer.json: a model of type {bpe.get('type')} has no GGUF form known here."
        )
    size = config["vocab_size"]
    special = {token["id"]: token for token in content["added_tokens"]}
    by_id = {number: token for token, number in bpe["vocab"].items()}
    by_id |= {number: token["content"] for number, token in special.items()}
    # A vocabulary may be padded beyond its tokens.
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(size)]
    kinds = []
    for number, token in enumerate(tokens):
        if number in special:
            kinds.append(
                gguf.TokenType.CONTROL
                if special[number]["special"]
                else gguf.TokenType.USER_DEFINED
            )
        elif number not in by_id:
            kinds.append(gguf.TokenType.UNUSED)
        else:
            byte = bpe.get("byte_fallback") and len(token) == 6 and token.startswith("<0x")
            kinds.append(gguf.TokenType.BYTE if byte else gguf.TokenType.NORMAL)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]
    if bpe.get("byte_fallback"):
        # llama.cpp joins the pair with the highest score: the merges' order, as falling scores.
        ranks: dict[str, int] = {}
        for rank, merge in enumerate(merges):
            ranks.setdefault(merge.replace(" ", ""), rank)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre(PLAIN)
        writer.add_token_list(tokens)
        writer.add_token_scores([-float(ranks.get(token, len(merges))) for token in tokens])
        writer.add_token_types(kinds)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_split_name(content, directory))
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_merges(merges)
    writer.add_eos_token_id(tokenizer.eos_id)
    bos = (
        tokenizer.tokens.get("bos_token")
        if isinstance(tokenizer, PretrainedTokenizer)
        else SPECIAL[0]
    )
    first = next((number for number, token in special.items() if token["content"] == bos), None)
    if first is not None:
        writer.add_bos_token_id(first)
    before, after = tokenizer.around
    writer.add_add_bos_token(first is not None and before == (first,))
    if after == (tokenizer.eos_id,):
        writer.add_add_eos_token(True)
    template = tokenizer.template if isinstance(tokenizer, PretrainedTokenizer) else CHAT_TEMPLATE
    if template:
        writer.add_chat_template(template)


def _split_name(content: dict[str, Any], directory: Path) -> str:
    """llama.cpp's name for how a tokenizer splits text; says so where it has none."""
    text = json.dumps(content.get("pre_tokenizer"))
    for pattern, name in SPLITS.items():
        if json.dumps(pattern)[1:-1] in text:
            return name
    if '"use_regex": true' in text and "Split" not in text:
        return "smollm" if '"Digits"' in text else "gpt-2"
    print(
        f"export: llama.cpp has no splitting rule like that of {directory}/tokenizer.json and will use its default: "
        "text that it splits otherwise gets other ids than here, and so a somewhat worse answer. Ids are not affected."
    )
    return PLAIN
