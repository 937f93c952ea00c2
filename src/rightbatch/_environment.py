"""Where a measurement was made: what a reader needs to know to believe or repeat it."""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess

import torch

# Extra -> the package that it brings, as imported.
EXTRAS = {
    "demo": "sklearn",
    "sweep": "optuna",
    "curvature": "curvlinops",
    "energy": "zeus",
    "lightning": "lightning",
    "huggingface": "transformers",
    "fastai": "fastai",
}


def describe_environment(device: torch.device | None = None) -> dict[str, str]:
    """Describe the machine and the versions.

    Args:
        device: The device that is measured; the CPU by default.

    Returns:
        Names and values as text: versions, device, threads, and the commit of the folder that
        the command runs in, where it is a git checkout.

    Example:
        >>> describe_environment()["device"]
        'cpu'
    """
    device = device or torch.device("cpu")
    described = {
        "rightbatch": importlib.metadata.version("rightbatch"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": importlib.metadata.version("numpy"),
        "platform": platform.platform(terse=True),
        "device": str(device),
        "threads": str(torch.get_num_threads()),
        "cores": str(os.cpu_count() or 1),
    }
    if device.type == "cuda":
        described["device_name"] = torch.cuda.get_device_name(device)
    commit = _commit()
    if commit:
        described["commit"] = commit
    return described


def installed_extras() -> dict[str, bool]:
    """Tell which optional parts are installed, without importing them."""
    return {name: importlib.util.find_spec(module) is not None for name, module in EXTRAS.items()}


def _commit() -> str | None:
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None
