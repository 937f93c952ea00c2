"""What a program has set in torch for good, so that another process computes as this one does.

A process that tries batches starts with torch's own settings. A library that times its kernels, an
attention without its fast path, or another default type takes other memory, or raises.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

Switch = tuple[Callable[[], bool], Callable[[bool], None]]

_SWITCHES: dict[str, Switch] = {
    name: (
        getattr(torch.backends.cuda, f"{name}_enabled"),
        getattr(torch.backends.cuda, f"enable_{name}"),
    )
    for name in ("flash_sdp", "mem_efficient_sdp", "math_sdp", "cudnn_sdp")
}
_CUDNN = ("enabled", "benchmark", "deterministic")
# One setting by its old names and, from torch 2.9 on, its new ones.
_PRECISIONS: dict[str, Callable[[], object]] = {
    "matmul": torch.get_float32_matmul_precision,
    "cudnn": lambda: torch.backends.cudnn.allow_tf32,
    "all, new": lambda: torch.backends.fp32_precision,  # pyright: ignore
    "matmul, new": lambda: torch.backends.cuda.matmul.fp32_precision,
    "conv, new": lambda: torch.backends.cudnn.conv.fp32_precision,  # pyright: ignore
    "rnn, new": lambda: torch.backends.cudnn.rnn.fp32_precision,  # pyright: ignore
}


def settings_here() -> dict[str, Any]:
    """Read what is set in this process, as plain JSON types.

    Example:
        >>> settings_here()["dtype"] == str(torch.get_default_dtype()).removeprefix("torch.")
        True
    """
    return {
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "device": str(torch.get_default_device()),
        "cuda_device": torch.cuda.current_device() if torch.cuda.is_initialized() else 0,
        "deterministic": [
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ],
        "cudnn": {name: getattr(torch.backends.cudnn, name) for name in _CUDNN},
        "switches": {name: read() for name, (read, _) in _SWITCHES.items()},
    }


def precisions_here() -> dict[str, str]:
    """Read what float32 products are computed in, by all the names that torch answers to.

    Where a program has set one by its new name, torch refuses to tell the old one.

    Example:
        >>> precisions_here()["matmul"] == torch.get_float32_matmul_precision()
        True
    """
    found: dict[str, str] = {}
    for name, read in _PRECISIONS.items():
        with suppress(RuntimeError, AttributeError):
            found[name] = str(read())
    return found


def adopt(settings: dict[str, Any]) -> None:
    """Set this process as another one is: what differs there, and nothing else.

    Args:
        settings: Of `settings_here`, there.
    """
    here = settings_here()
    torch.set_default_dtype(getattr(torch, settings["dtype"]))
    if settings["cuda_device"] != here["cuda_device"]:
        torch.cuda.set_device(settings["cuda_device"])
    if settings["device"] != here["device"]:
        torch.set_default_device(settings["device"])
    if settings["deterministic"] != here["deterministic"]:
        enabled, warn_only = settings["deterministic"]
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    for name, value in settings["cudnn"].items():
        if value != here["cudnn"][name]:
            setattr(torch.backends.cudnn, name, value)
    for name, value in settings["switches"].items():
        if value != here["switches"][name]:
            _SWITCHES[name][1](value)
