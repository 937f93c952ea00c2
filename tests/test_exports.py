"""The public names: exactly these, each with a docstring, and no optional dependency loaded."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from enum import Enum
from types import ModuleType

import pytest

import rightbatch

OPTIONAL = ["sklearn", "optuna", "ray", "curvlinops", "zeus", "lightning", "transformers", "fastai"]
MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(rightbatch.__path__, "rightbatch.")
    if not name.endswith("__main__")
]


SECOND_ARGUMENT = {
    "measure_throughput": ["sizes"],  # the design says so
    "measure_energy": ["sizes"],  # as throughput
    "critical_batch_size": ["track"],  # two results of equal rank
    "convert_ghost_batch_norm": ["size"],  # the design says so
    "scale_hyperparameters": ["from_batch_size", "to_batch_size"],  # the design says so
    "per_example_grad_sq": ["batch"],  # a task and one of its batches
}


def public_names(module: ModuleType) -> list[str]:
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    )


def test_the_public_names_are_listed_in_order() -> None:
    assert rightbatch.__all__ == public_names(rightbatch)


@pytest.mark.parametrize("name", MODULES)
def test_every_list_of_names_is_sorted_and_true(name: str) -> None:
    module = importlib.import_module(name)
    names = getattr(module, "__all__", [])
    # Constants first, as ruff sorts them.
    assert list(names) == sorted(set(names), key=lambda entry: (not entry.isupper(), entry))
    assert all(hasattr(module, entry) for entry in names)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_for(name: str) -> None:
    assert (importlib.import_module(name).__doc__ or "").strip()


@pytest.mark.parametrize("name", rightbatch.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(rightbatch, name)
    summary = (inspect.getdoc(value) or "").partition("\n")[0]
    assert summary.endswith("."), f"{name}: {summary!r}"
    if inspect.isclass(value) and not issubclass(value, Exception | Enum):
        methods = [
            method
            for key, method in vars(value).items()
            if not key.startswith("_") and callable(method)
        ]
        assert all(inspect.getdoc(method) for method in methods), name


@pytest.mark.parametrize(
    "name", [name for name in rightbatch.__all__ if inspect.isfunction(getattr(rightbatch, name))]
)
def test_every_public_functions_docstring_names_its_parameters(name: str) -> None:
    function = getattr(rightbatch, name)
    documentation = inspect.getdoc(function) or ""
    missing = [
        parameter
        for parameter in inspect.signature(function).parameters
        if f"{parameter}:" not in documentation and f"{parameter}`" not in documentation
    ]
    assert missing == []


@pytest.mark.parametrize(
    "name", [name for name in rightbatch.__all__ if inspect.isfunction(getattr(rightbatch, name))]
)
def test_options_are_keyword_only_after_the_first_argument(name: str) -> None:
    parameters = list(inspect.signature(getattr(rightbatch, name)).parameters.values())
    positional = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters)
    assert positional[1:] == SECOND_ARGUMENT.get(name, [])


def run(code: str) -> str:
    """Print of a fresh interpreter, in which a warning is an error and a word on stderr too."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


LOADED = "print(*{name.split('.')[0] for name in sys.modules})"


def test_importing_loads_no_optional_dependency_and_says_nothing() -> None:
    loaded = run(f"import sys, rightbatch; {LOADED}").splitlines()
    assert len(loaded) == 1
    assert set(loaded[0].split()).isdisjoint(OPTIONAL)


def test_the_meter_sees_what_is_loaded() -> None:
    assert "wave" in run(f"import sys, wave; {LOADED}").split()
    assert "wave" not in run(f"import sys; {LOADED}").split()
