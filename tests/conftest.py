"""What every test can rely on: float64, one thread a worker, and skips that say why.

A test module whose subject runs as users run it (built-in tasks, the command line) opts out:

    pytestmark = pytest.mark.usefixtures("float32")
"""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).parents[1]
DATA_FILES = ("mnist.npz", "bike_sharing_hour.csv", "tinyshakespeare.txt")

# The same examples on every run, and no clock: a property fails always or never.
hypothesis.settings.register_profile("rightbatch", derandomize=True, deadline=None)
hypothesis.settings.load_profile("rightbatch")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", help="where tests that need an accelerator run; by default on it")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell that starts the suite in the background has it ignore Ctrl-C, which is tested.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    beside = ROOT.parent / "shared" / "data"
    if "RIGHTBATCH_DATA" not in os.environ and beside.is_dir():
        os.environ["RIGHTBATCH_DATA"] = str(beside)
    if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several workers would only wait in turn
        torch.set_num_threads(1)


def chromium() -> str | None:
    """Path of a browser: ``$CHROMIUM``, or the one that is installed."""
    named = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    return named if shutil.which(named) else None


def _lacking(item: pytest.Item) -> str | None:
    """Say what this machine lacks for a test, if anything."""
    if item.get_closest_marker("gpu") and not torch.accelerator.is_available():
        return "no accelerator on this machine"
    if item.get_closest_marker("browser") and chromium() is None:
        return "no Chromium: install one, or name its path in $CHROMIUM"
    if item.get_closest_marker("data"):
        folder = os.environ.get("RIGHTBATCH_DATA")
        if not folder:
            return "$RIGHTBATCH_DATA is not set"
        absent = [name for name in DATA_FILES if not (Path(folder) / name).is_file()]
        if absent:
            return f"$RIGHTBATCH_DATA lacks {', '.join(absent)}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    reason = _lacking(item)
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _default_dtype() -> Iterator[None]:
    """Compute in float64, where rounding cannot hide a wrong formula."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def float32(_default_dtype: None) -> None:
    """Compute in float32, as users do; the default comes back with `_default_dtype`."""
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where tests that need an accelerator put their tensors: ``--device``, or the one there is."""
    asked = request.config.getoption("--device")
    return torch.device(asked or torch.accelerator.current_accelerator() or "cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep measurements apart: no test knows what another one measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
