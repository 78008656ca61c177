"""The dial `model.depth`, which gives the shape of the model, its training budget and rates.

A key that params.yaml writes as `auto` takes its value from the rules below; a key with a number
keeps it, and the other rules use that number. `llm.params` resolves the dial when it reads the
file, so stages, records and reports see plain numbers.

| key | rule | source |
|---|---|---|
| num_hidden_layers | depth | |
| hidden_size | 64 · depth, up to a whole number of heads | nanochat (github.com/karpathy/nanochat,
base_train.py) |
| head_dim | 64 below a hidden size of 1,024, 128 from there on | GPT-2; LLaMA, arXiv:2302.13971 |
| num_key_value_heads | all heads | nanochat |
| intermediate_size | 8/3 · hidden_size, up to a multiple of 64 | SwiGLU: Shazeer 2020,
arXiv:2002.05202, section 2 |
| tokens D | 20 a parameter | Hoffmann et al. 2022, arXiv:2203.15556, table 3 |
| batch_tokens | 0.2920 · C^0.3271, to the nearest power of two of sequences | DeepSeek LLM,
arXiv:2401.02954, eq. 1 |
| learning_rate | 0.3118 · C^-0.1250 | DeepSeek LLM, eq. 1 |
| weight_decay | 1 / (learning_rate · steps · τ), τ = 1.084 · (D/N)^-0.527 | Bergsma et al. 2025,
arXiv:2505.13738 |

C = M · D is the compute, M = 6 · weights of the layers + 12 · layers · hidden_size ·
sequence_length the FLOPs a token without embeddings (DeepSeek LLM, eq. 2), N the parameters,
embeddings included. DeepSeek fitted C from 1e17 to 2e19 for AdamW; Muon's update is scaled to
AdamW's so that rate and decay carry over (Liu et al. 2025, arXiv:2502.16982). Models
for two cores are below that range: docs/LOG.md compares the rules with values tuned by hand there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

from llm.errors import UserError

AUTO = "auto"
SHAPE = (
    "num_hidden_layers",
    "hidden_size",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)
TRAINING = ("tokens", "batch_tokens", "learning_rate", "weight_decay")
TOKENS_PER_PARAMETER = 20
GPT2_VOCABULARY = 50260  # GPT-2's 50,257 and the chat tokens


def resolve(data: dict[str, Any], where: str = "params.yaml") -> dict[str, Any]:
    """Return a copy of `data` with a number for every `auto`.

    Args:
        data: params.yaml as read, not yet checked.
        where: its origin, for messages.

    Raises:
        UserError: `auto` without a depth, a depth that no key follows, or a number that leaves
            no valid value for another key.
    """
    model, pretrain = data.get("model"), data.get("pretrain")
    if not isinstance(model, dict) or not isinstance(pretrain, dict):
        return data  # the later check reports it
    depth = model.get("depth")
    follows = [f"model.{key}" for key in SHAPE if model.get(key) == AUTO]
    follows += [f"pretrain.{key}" for key in TRAINING if pretrain.get(key) == AUTO]
    if depth is None:
        if follows:
            raise UserError(
                f"{where}: {', '.join(follows)}: `auto` needs model.depth: set it to a number of layers."
            )
        return data
    if _count(depth) is None:
        raise UserError(
            f"{where}: model.depth: expected a whole number of layers above 0, or null; found {depth!r}."
        )
    if not follows:
        raise UserError(
            f"{where}: model.depth is {depth}, but no key follows it: each states its own number. Write `auto` for "
            "those that should (`python -m llm preset depth` does it for all), or set model.depth to null."
        )
    data = copy.deepcopy(data)
    model, pretrain = data["model"], data["pretrain"]
    model |= _shape(
        depth, {key: n for key in SHAPE if (n := _count(model.get(key)))}, where
    ) | _kept(model, SHAPE)
    pretrain |= _training(data) | _kept(pretrain, TRAINING)
    return data


def _kept(section: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the values that the file states, valid or not: the later check reports them."""
    return {key: section[key] for key in keys if key in section and section[key] != AUTO}


def _count(value: Any) -> int | None:
    """Return a whole number above 0; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _up(value: float, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple


def _shape(depth: int, stated: dict[str, int], where: str) -> dict[str, int]:
    """Return dimensions by Hugging Face's names, consistent with those that are stated."""
    width = 64 * depth
    size, heads = stated.get("head_dim"), stated.get("num_attention_heads")
    if size is None and heads is not None:
        hidden = stated.get("hidden_size") or _up(width, 2 * heads)  # rotary positions turn pairs
        size = hidden // heads
    else:
        size = size or (64 if stated.get("hidden_size", width) < 1024 else 128)
        hidden = stated.get("hidden_size") or _up(width, math.lcm(size, heads or 1))
        if heads is None and hidden % size:
            raise UserError(
                f"{where}: model.num_attention_heads: `auto` is model.hidden_size / model.head_dim, but {hidden} is no "
                f"multiple of {size}. State model.num_attention_heads or model.head_dim."
            )
        heads = heads or hidden // size
    return {
        "num_hidden_layers": stated.get("num_hidden_layers", depth),
        "hidden_size": hidden,
        "head_dim": size,
        "num_attention_heads": heads,
        "num_key_value_heads": stated.get("num_key_value_heads", heads),
        "intermediate_size": stated.get("intermediate_size", _up(8 * hidden / 3, 64)),
    }


def fine_batch_tokens(data: dict[str, Any]) -> int:
    """Return `pretrain.batch_tokens` by the rule, to the nearest sequence, for resolved data.

    In a ladder of sizes and tokens a power of two would change at some rungs only, and the losses
    would jump there.
    """
    _, _, compute, length = _budget(data, lambda key, rule: data["pretrain"].get(key, rule))
    return length * max(1, round(_sequences(compute, length)))


def _sequences(compute: float, length: int) -> float:
    """Return the sequences of a batch by the rule, unrounded."""
    return 0.2920 * compute**0.3271 / length


def _budget(
    data: dict[str, Any], stated: Callable[[str, float], float]
) -> tuple[float, float, float, int]:
    """Return parameters, training tokens, FLOPs without embeddings, and sequence length."""
    model, pretrain, tokenize = data["model"], data["pretrain"], data.get("tokenize")
    tokenize = tokenize if isinstance(tokenize, dict) else {}
    shape = {key: _count(model[key]) or 1 for key in SHAPE}
    asked = GPT2_VOCABULARY if tokenize.get("tokenizer") == "gpt2" else tokenize.get("vocab_size")
    vocabulary, length = (_count(asked) or 1, _count(pretrain.get("sequence_length")) or 1)
    layers = layer_weights(shape)
    parameters = layers + vocabulary * shape["hidden_size"] * (
        1 if model.get("tie_word_embeddings") else 2
    )
    tokens = stated("tokens", TOKENS_PER_PARAMETER * parameters)
    per_token = 6 * layers + 12 * shape["num_hidden_layers"] * shape["hidden_size"] * length
    return parameters, tokens, per_token * tokens, length


def _training(data: dict[str, Any]) -> dict[str, int | float]:
    """Return budget, batch, rate and decay; each is derived from those that are stated."""

    def stated(key: str, rule: float) -> float:
        value = data["pretrain"].get(key)
        good = (
            isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
        )
        return value if good else rule

    parameters, tokens, compute, length = _budget(data, stated)
    batch = stated(
        "batch_tokens", length * 2 ** max(0, round(math.log2(_sequences(compute, length))))
    )
    rate = stated("learning_rate", _short(0.3118 * compute**-0.1250))
    timescale = 1.084 * (tokens / parameters) ** -0.527
    steps = max(1, math.ceil(tokens / batch))
    return {
        "tokens": int(tokens),
        "batch_tokens": int(batch),
        "learning_rate": rate,
        "weight_decay": _short(1 / (rate * steps * timescale)),
    }


def layer_weights(shape: dict[str, int]) -> int:
    """Return the number of weights in the matrices of all layers."""
    heads = 2 * shape["num_attention_heads"] + 2 * shape["num_key_value_heads"]
    return (
        shape["num_hidden_layers"]
        * shape["hidden_size"]
        * (heads * shape["head_dim"] + 3 * shape["intermediate_size"])
    )


def _short(value: float) -> float:
    """Round to three digits; the fits are not more precise."""
    return float(f"{value:.3g}")
