"""Muon for matrices, AdamW for the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from llm.model.sharded_tensor import is_sharded

# Newton-Schulz coefficients of Jordan et al. 2024 (kellerjordan.github.io/posts/muon), as in
# torch.optim.Muon.
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximately the nearest semi-orthogonal matrices to (batch, rows, columns), in bfloat16 as
    torch.optim.Muon.
    """
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def orthogonalize_all(matrices: list[Tensor]) -> Iterable[Tensor]:
    """`orthogonalize` of matrices of one shape (rows, columns), in one batch, or where they are
    sharded in one batch a process."""
    if not is_sharded(matrices[0]):
        return orthogonalize(torch.stack(matrices))
    from llm.train.fsdp import each_whole

    # Half the bytes, and no other result: orthogonalize works in bfloat16.
    updates = each_whole([matrix.bfloat16() for matrix in matrices], orthogonalize)  # type: ignore[misc]
    return [update.to(matrices[0].dtype) for update in updates]


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon's update (Nesterov momentum, update scaled to AdamW's RMS: Liu et al. 2025,
    arXiv:2502.16982), with equal shapes orthogonalized in one batch: the matrices of a small model
    are too small to do one by one."""

    def __init__(
        self, params: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, parameters in shapes.items():
                directions = []
                for parameter in parameters:
                    assert parameter.grad is not None
                    state = self.state[parameter]
                    if not state:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                    state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                    directions.append(
                        parameter.grad.lerp(state["momentum_buffer"], group["momentum"])
                    )
                updates = orthogonalize_all(directions)
                scale = 0.2 * max(shape) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * scale)


class Optimizers:
    """The optimizers of one model: one learning rate, one flat state.

    Trainable matrices of the layers go to Muon where it is asked for; embeddings, the output
    projection and vectors go to AdamW, vectors without weight decay.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: str,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        embedding_lr_multiplier: float = 1.0,
    ) -> None:
        """Give each parameter its optimizer.

        Args:
            model: its trainable parameters are updated.
            kind: `muon` or `adamw`.
            lr: peak learning rate.
            weight_decay: decoupled; a step shrinks every matrix by lr · weight_decay.
            betas: AdamW's.
            embedding_lr_multiplier: factor on the learning rate of the input embeddings. It has no
                effect on embeddings that are tied to the output projection.
        """
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        matrices = [name for name, p in trainable.items() if p.dim() == 2]
        muon = [name for name in matrices if kind == "muon" and ".layers." in name]
        # Tied embeddings go by the same name, and are the output projection too.
        tied = "lm_head.weight" not in trainable
        embeddings = [] if tied else [n for n in matrices if n.endswith("embed_tokens.weight")]
        groups = [
            {
                "params": [trainable[n] for n in matrices if n not in (*muon, *embeddings)],
                "weight_decay": weight_decay,
            },
            {
                "params": [trainable[n] for n in embeddings],
                "weight_decay": weight_decay / embedding_lr_multiplier,
                "lr_multiplier": embedding_lr_multiplier,
            },
            {"params": [p for n, p in trainable.items() if n not in matrices], "weight_decay": 0.0},
        ]
        self.parameters = trainable
        self.optimizers: list[torch.optim.Optimizer] = []
        if muon:
            self.optimizers.append(Muon([trainable[n] for n in muon], lr, weight_decay))
        if groups := [group for group in groups if group["params"]]:
            self.optimizers.append(
                torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-10, fused=True)
            )

    def step(self, lr: float) -> None:
        """Update with the gradients that are there, then drop them."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_multiplier", 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The state by `<parameter>.<key>`; empty before the first step."""
        return {
            f"{name}.{key}": value
            for name, parameter in self.parameters.items()
            for optimizer in self.optimizers
            for key, value in optimizer.state.get(parameter, {}).items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over the state that `tensors()` returned."""
        owner = {p: o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        for name, parameter in self.parameters.items():
            state = {
                key[len(name) + 1 :]: v
                for key, v in tensors.items()
                if key.rpartition(".")[0] == name
            }
            if state:
                owner[parameter].state[parameter] = {
                    k: v.to(parameter.device).clone() for k, v in state.items()
                }
