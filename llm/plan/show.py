"""The output of `python -m llm plan`: plans on this machine or on GPUs by their data sheets."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from llm import params
from llm.params import Params, depth, presets
from llm.plan.gpus import gpus
from llm.plan.plan import Plan
from llm.plan.stages import finetune_plan, pretrain_config, pretrain_plan
from llm.runtime.units import duration, size

# English web text in GPT-2's vocabulary: OpenWebText is 39.8 GB and 9.04e9 tokens (nanoGPT)
BYTES_A_TOKEN = 4.4


def show_plan(
    as_json: bool = False,
    name: str | None = None,
    gpu: str | None = None,
    count: int = 1,
    price: float | None = None,
) -> None:
    """Print the plans of pretraining and finetuning by params.yaml.

    Args:
        name: a preset to apply over params.yaml for this plan; the file does not change.
        gpu, count: plan for these GPUs instead of this machine.
        price: one GPU hour, in any currency.

    Raises:
        UserError: the run does not fit, or the preset or GPU is unknown.
    """
    p = presets.params_with(name) if name else params.load()
    plans = [
        pretrain_plan(p, machine=gpus(gpu, count, p.pretrain.precision) if gpu else None),
        finetune_plan(p, machine=gpus(gpu, count, p.finetune.precision) if gpu else None),
    ]
    if p.finetune.base != params.BASE:
        del plans[0]  # what is finetuned is not pretrained here
    if as_json:
        print(json.dumps({plan.stage: _as_json(plan) for plan in plans}, indent=2))
        return
    if p.model.depth is not None:
        print(f"model.depth {p.model.depth} gives:")
        for section, values in (("model", p.model), ("pretrain", p.pretrain)):
            shown = {
                k: v for k, v in values.model_dump().items() if k in (*depth.SHAPE, *depth.TRAINING)
            }
            print(f"  {section}: " + ", ".join(f"{key} {value:,}" for key, value in shown.items()))
        print()
    for plan in plans:
        _table(plan.stage, plan.rows())
    together = [("time", f"about {duration(sum(plan.seconds for plan in plans))} of training")]
    if price is not None:
        hours = sum(plan.seconds * plan.devices for plan in plans) / 3600
        together.append(
            ("cost", f"about {hours * price:,.2f}, {hours:,.1f} GPU hours at {price:g}")
        )
    if (text := _text_bytes(p)) is not None:
        tokens = 2 * text / BYTES_A_TOKEN * (1 if pretrain_config(p).vocab_size <= 65536 else 2)
        together.append(
            (
                "data",
                f"at most about {size(text)} in data/raw (less, compressed), {size(tokens)} of tokens",
            )
        )
    _table("together", together)
    for plan in plans:
        plan.check()


def _table(title: str, rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    print(title)
    for name, value in rows:
        print(f"  {name:{width}}  {value}")
    print()


def _text_bytes(p: Params) -> int | None:
    """Return the bytes that hub sources are limited to; None if no source has a limit."""
    limits = [
        limit for source in p.download.values() if (limit := getattr(source, "max_bytes", None))
    ]
    return sum(limits) if limits else None


def _as_json(plan: Plan) -> dict[str, Any]:
    values = asdict(plan)
    values["memory"]["peak"] = plan.memory.peak
    return values
