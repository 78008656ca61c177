"""Reading and writing of parameters that may be sharded over processes (DTensor)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether this process holds only a part of a tensor.

    It does not import torch.distributed.tensor, because that import is slow.
    """
    return hasattr(tensor, "full_tensor")


@torch.no_grad()
def fill(parameter: Tensor, value: Tensor) -> None:
    """Copy a full value into a parameter.

    If the parameter is sharded, each process copies its own rows, without communication.
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
    """Return the full value. For a sharded tensor every process must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def unshard(model: nn.Module, keep: bool) -> None:
    """Gather sharded parameters into host memory one by one, so that the model can be saved.

    All processes must call it. The model cannot be trained afterwards.

    Args:
        model: a model with sharded parameters; it is changed in place.
        keep: keep the values; otherwise the parameters end on the meta device, without memory.
    """
    gathered: dict[Tensor, nn.Parameter] = {}  # one entry for a tied matrix, so that it stays tied
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in gathered:
                value = whole(parameter.detach())
                gathered[parameter] = nn.Parameter(
                    value.to("cpu" if keep else "meta"), parameter.requires_grad
                )
            module.register_parameter(name, gathered[parameter])
