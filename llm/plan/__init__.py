"""The time, memory and disk of a run before it starts; a run that does not fit is refused."""

from llm.plan.plan import Plan
from llm.plan.stages import UTILISATION, before_training, finetune_plan, pretrain_plan

__all__ = ["UTILISATION", "Plan", "before_training", "finetune_plan", "pretrain_plan"]
