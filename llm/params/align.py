"""`align`: training on preferences, after finetuning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llm.errors import UserError
from llm.params.section import Positive
from llm.params.training import Finetune, Lora, Training

FINETUNED = "models/finetuned"  # the value of align.base for the model that finetune made


class Align(Training):
    """The pairs to learn from, and the loss that learns from them."""

    method: Literal["dpo", "ipo", "orpo", "simpo"] | None = None
    base: Annotated[str, Field(min_length=1)] = FINETUNED
    beta: Annotated[float, Field(gt=0)]
    simpo_gamma: Annotated[float, Field(ge=0)] = 0.5
    tasks: Annotated[list[str], Field(min_length=1)]
    prompts: Positive
    samples: Annotated[int, Field(ge=2)]
    temperature: Annotated[float, Field(gt=0)]
    max_new_tokens: Positive
    margin: Annotated[float, Field(gt=0)]
    val_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    epochs: Annotated[float, Field(gt=0)]
    lora: Lora

    def finetune(self, context: int) -> Finetune:
        """Return the params of finetuning that prepare and write such a model.

        Args:
            context: most tokens of one answer with its prompt.
        """
        common = self.model_dump(include={*Training.model_fields, "base", "lora", "epochs"})
        length = min(self.sequence_length, context)
        changed = {"sequence_length": length, "batch_tokens": length, "method": "lora"}
        return Finetune.model_validate(common | changed)


def with_method(align: Align | None) -> Align:
    """Return the params of training on preferences, with a method.

    Raises:
        UserError: there are none, or no method is chosen.
    """
    if align is None or align.method is None:
        raise UserError(
            "set align.method to dpo, ipo, orpo or simpo: `dvc exp run -S align.method=dpo align/dvc.yaml`."
        )
    return align
