"""The rotary part of a `config.json`. Without torch: what only reads a model's shape need not wait
for it.
"""

from __future__ import annotations

from typing import Any

from llm.errors import UserError

SCALINGS: dict[str, tuple[set[str], set[str]]] = {  # rope_type -> required fields, optional fields
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "llama3": (
        {"factor", "low_freq_factor", "high_freq_factor"},
        {"original_max_position_embeddings"},
    ),
    "yarn": (
        {"factor"},
        {
            "original_max_position_embeddings",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
            "beta_fast",
            "beta_slow",
            "truncate",
        },
    ),
}


def read_rope(
    data: dict[str, Any], max_position_embeddings: int, where: str
) -> tuple[float, dict[str, Any] | None]:
    """`rope_theta`, and the scaling (None: plain), of a `config.json` in the old form or the new
    one.

    Raises:
        UserError: a kind of scaling that is not computed here, or a field of it that would be
            ignored or is missing.
    """
    given: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        part = data.get(name) or {}
        if not isinstance(part, dict):
            raise UserError(f"{where}: {name} = {part!r}; expected an object.")
        given |= {key: value for key, value in part.items() if value is not None}
    theta = float(given.pop("rope_theta", data.get("rope_theta") or 10000.0))
    kind = given.pop("rope_type", given.pop("type", "default"))
    given.pop("type", None)
    if given.pop("partial_rotary_factor", data.get("partial_rotary_factor")) not in (None, 1):
        raise UserError(f"{where}: partial_rotary_factor is not supported; expected 1.0.")
    if kind not in SCALINGS:
        raise UserError(
            f"{where}: rotary scaling {kind!r} is not supported; supported: {', '.join(SCALINGS)}."
        )
    required, optional = SCALINGS[kind]
    if unknown := sorted(
        key for key, value in given.items() if value and key not in required | optional
    ):
        raise UserError(
            f"{where}: rotary scaling {kind!r} has a field {unknown[0]!r} that would be ignored."
        )
    if missing := sorted(required - set(given)):
        raise UserError(f"{where}: rotary scaling {kind!r} lacks the field {missing[0]!r}.")
    given = {key: value for key, value in given.items() if key in required | optional}
    for key, value in given.items():
        if not isinstance(value, (int, float)):
            raise UserError(f"{where}: rotary scaling field {key} = {value!r}; expected a number.")
    if kind == "default":
        return theta, None
    if "original_max_position_embeddings" in optional:
        given.setdefault("original_max_position_embeddings", max_position_embeddings)
    return theta, {"rope_type": kind, **given}
