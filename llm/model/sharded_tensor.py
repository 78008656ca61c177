"""Values of parameters that may be sharded over processes (DTensor); plain ones pass through."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of it only; tells without importing
    torch.distributed.tensor, which is slow.
    """
    return hasattr(tensor, "full_tensor")


@torch.no_grad()
def fill(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole value into a parameter; of a sharded one each process takes its own rows,
    without communication.
    """
    if not is_sharded(parameter):
        parameter.data.copy_(value)
        return
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    value = value.to(parameter.device, parameter.dtype)
    part = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.to_local().copy_(part.to_local())


def whole(tensor: Tensor) -> Tensor:
    """The whole value; of a sharded tensor every process must ask for it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def unshard(model: nn.Module, keep: bool) -> None:
    """Make sharded parameters plain ones in the host's memory, one after the other, so that the
    model can be written.

    All processes must call it; those without `keep` are left with parameters without memory. It
    ends training."""
    found: dict[Tensor, nn.Parameter] = {}  # a tied matrix stays one
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in found:
                value = whole(parameter.detach())
                found[parameter] = nn.Parameter(
                    value.to("cpu" if keep else "meta"), parameter.requires_grad
                )
            module.register_parameter(name, found[parameter])
