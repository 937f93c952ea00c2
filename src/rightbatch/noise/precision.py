"""In which type sums over a device's tensors are kept: float64, but for devices without it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the widest floating-point type that a device computes in.

    Apple's GPUs have no float64, nor do some of Intel's: a tensor of it cannot even be made there.

    Args:
        device: Where gradients are.

    Example:
        >>> sum_dtype(torch.device("cpu")), sum_dtype(torch.device("mps"))
        (torch.float64, torch.float32)
    """
    if device.type == "xpu":
        has_float64 = getattr(torch.xpu.get_device_properties(device), "has_fp64", True)
    else:
        has_float64 = device.type != "mps"
    return torch.float64 if has_float64 else torch.float32


def widened(tensor: Tensor) -> Tensor:
    """Convert to the widest type of the tensor's device: see `sum_dtype`.

    Example:
        >>> widened(torch.zeros(2, dtype=torch.bfloat16)).dtype
        torch.float64
    """
    return tensor.to(sum_dtype(tensor.device))


def on_host(tensor: Tensor) -> NDArray[np.float64]:
    """Wait for a device's numbers, and go on with them in float64 whatever it has.

    Example:
        >>> on_host(torch.ones(1, dtype=torch.float32)).dtype
        dtype('float64')
    """
    return tensor.cpu().numpy().astype(np.float64, copy=False)
