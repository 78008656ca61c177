"""What a run will take, before it takes it, and a refusal where that does not fit the machine."""

from llm.plan.plan import Plan
from llm.plan.stages import UTILISATION, before_training, finetune_plan, pretrain_plan

__all__ = ["UTILISATION", "Plan", "before_training", "finetune_plan", "pretrain_plan"]
