"""The techniques that are measured, each beside the one that it adds to."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from llm.params import Finetune

# Full finetuning learns best at about a tenth of LoRA's rate (Schulman et al. 2025, "LoRA Without
# Regret").
LORA_RATE = 10.0


@dataclass(frozen=True)
class Technique:
    """A row of the table.

    Args:
        beside: the row that it is compared with, which lacks its last technique.
        rows: sequences of a forward pass; None: the whole batch. Fewer are gradient accumulation.
    """

    name: str
    label: str
    beside: str | None
    method: str
    precision: str = "bf16"
    rows: int | None = None
    checkpointing: bool = False


TECHNIQUES = (
    Technique("full", "full precision", None, "full", "fp32"),
    Technique("bf16", "bf16", "full", "full"),
    Technique("accumulation", "bf16 + accumulation", "bf16", "full", rows=1),
    Technique("checkpointing", "bf16 + checkpointing", "bf16", "full", checkpointing=True),
    Technique(
        "both",
        "bf16 + accumulation + checkpointing",
        "accumulation",
        "full",
        rows=1,
        checkpointing=True,
    ),
    Technique("lora-full", "LoRA in full precision", "full", "lora", "fp32"),
    Technique("lora", "LoRA + bf16", "bf16", "lora"),
    Technique(
        "lora-both",
        "LoRA + bf16 + accumulation + checkpointing",
        "lora",
        "lora",
        rows=1,
        checkpointing=True,
    ),
    Technique("dora", "DoRA + bf16", "lora", "dora"),
    Technique("ia3", "IA3 + bf16", "lora", "ia3"),
    Technique("qlora", "QLoRA + bf16", "lora", "qlora"),
    Technique(
        "qlora-both",
        "QLoRA + bf16 + accumulation + checkpointing",
        "lora-both",
        "qlora",
        rows=1,
        checkpointing=True,
    ),
)


def chosen(settings: Finetune) -> tuple[list[Technique], list[str]]:
    """Return the techniques to measure with these settings, and why others are left out."""
    left_out = []
    techniques = list(TECHNIQUES)
    if importlib.util.find_spec("bitsandbytes") is None:
        techniques = [t for t in techniques if t.method != "qlora"]
        left_out.append(
            "QLoRA: bitsandbytes is not installed (pip install -c constraints.txt -e '.[qlora]')"
        )
    if settings.batch_tokens == settings.sequence_length:
        techniques = [t for t in techniques if t.rows is None]
        left_out.append("accumulation: a batch is one sequence (finetune.batch_tokens)")
    return techniques, left_out


def settings_of(technique: Technique, settings: Finetune) -> Finetune:
    """Return finetune's params with the technique; nothing is compiled, so that rows compare."""
    trains_all = technique.method == "full"
    rate = settings.learning_rate
    if trains_all != (settings.method == "full"):
        rate = rate / LORA_RATE if trains_all else rate * LORA_RATE
    return settings.model_copy(
        update={
            "method": technique.method,
            "precision": technique.precision,
            "grad_checkpointing": technique.checkpointing,
            "learning_rate": rate,
            "compile": False,
        }
    )
