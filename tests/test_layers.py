"""The house: imports point downward, files stay small. Every rule has a twin that breaks it."""

import shutil
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import rightbatch
from tests.house import files_of, imports_of, long_functions, module_of, unit_of

ROOT = Path(rightbatch.__file__).parent

LAYERS = [  # first = bottom
    {"errors", "results", "_stats", "_format", "_codec", "_time", "_environment"},
    {"task", "scaling", "_comm"},
    {"noise", "hardware", "lr", "batches", "norm", "curvature", "sweep"},
    {"plan", "control", "testing"},
    {"report", "integrations", "tasks"},
    {"findings"},
    {"find"},
    {"__init__"},
    {"studies"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
MEASURING = 2  # up to this layer only the numerical libraries
NUMERICAL = {"torch", "numpy", "scipy"}

# A study is a user of the public API. Beside it: data that claims are about, and the report's look.
STUDY_MATERIAL = ("rightbatch.tasks", "rightbatch.report.canvas")

# Dependencies, most of them optional, and the only places that may import them.
OPTIONAL = {
    "cloudpickle": "hardware/",
    "sklearn": "tasks/digits.py",
    "optuna": "sweep/",
    "ray": "sweep/",
    "curvlinops": "curvature/",
    "zeus": "hardware/energy.py",
    "lightning": "integrations/lightning.py",
    "transformers": "integrations/huggingface.py",
    "accelerate": "integrations/huggingface.py",
    "fastai": "integrations/fastai.py",
}

MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 50
LONGER: dict[str, str] = {  # file, or file:function -> why it may be longer
}


def unknown_units(root: Path) -> Iterator[str]:
    for unit in {unit_of(path) for path in files_of(root)} - LEVEL.keys():
        yield f"{unit} is in no layer"


def upward_imports(root: Path) -> Iterator[str]:
    for path in files_of(root):
        for found in imports_of(root, path):
            unit, other = found.unit, found.imported_unit
            if other is None or other == unit or unit == "__init__":
                continue
            level = LEVEL.get(other, len(LAYERS))  # names of the package itself: above all
            if level != 0 and level >= LEVEL[unit]:
                yield f"{path.as_posix()} must not import {found.name}"


def study_imports(root: Path) -> Iterator[str]:
    """What studies import beside ``import rightbatch``, the foundation and their material."""
    for path in files_of(root):
        for found in imports_of(root, path):
            other = found.imported_unit
            if found.unit != "studies" or other in (None, "__init__", "studies", *LAYERS[0]):
                continue
            if not f"{found.name}.".startswith(tuple(f"{name}." for name in STUDY_MATERIAL)):
                yield f"{path.as_posix()} must go through the public API, not {found.name}"


def foreign_imports(root: Path) -> Iterator[str]:
    """What the lower layers import beside the numerical libraries."""
    for path in files_of(root):
        if LEVEL[unit_of(path)] > MEASURING:
            continue
        for found in imports_of(root, path):
            top = found.name.split(".")[0]
            known = NUMERICAL | sys.stdlib_module_names | {"rightbatch"}
            is_allowed_extra = path.as_posix().startswith(OPTIONAL.get(top, "-"))
            if top not in known and not is_allowed_extra:
                yield f"{path.as_posix()} must not import {found.name}"


def misplaced_extras(root: Path) -> Iterator[str]:
    for path in files_of(root):
        for found in imports_of(root, path):
            place = OPTIONAL.get(found.name.split(".")[0])
            if place is not None and not path.as_posix().startswith(place):
                yield f"{path.as_posix()} must not import {found.name}"


def distributed_imports(root: Path) -> Iterator[str]:
    for path in files_of(root):
        for found in imports_of(root, path):
            if found.name.startswith("torch.distributed") and path.as_posix() != "_comm.py":
                yield f"{path.as_posix()} must not import {found.name}"


def cycles(root: Path) -> Iterator[str]:
    """Circles of imports at run time; what is imported for types alone is exempt in one room."""
    modules = {module_of(path) for path in files_of(root)}
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for path in files_of(root):
        for found in imports_of(root, path):
            target = next(
                (m for m in (found.name, found.name.rpartition(".")[0]) if m in graph), ""
            )
            is_own_package = module_of(path).startswith(f"{target}.")
            if target and not is_own_package and not found.for_types:
                graph[module_of(path)].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield " -> ".join(error.args[1])


def types_across_rooms(root: Path) -> Iterator[str]:
    for path in files_of(root):
        for found in imports_of(root, path):
            is_ours = found.imported_unit not in (None, found.unit)
            if found.for_types and is_ours and LEVEL.get(found.imported_unit or "", 99) != 0:
                yield f"{path.as_posix()} must not import {found.name}, not even for its types"


def grab_bags(root: Path) -> Iterator[str]:
    for path in files_of(root):
        if path.stem.strip("_") in {"utils", "util", "helpers", "common", "base", "misc"}:
            yield f"{path.as_posix()} must be named after what it holds"


def oversized(root: Path) -> Iterator[str]:
    for path in files_of(root):
        lines = len((root / path).read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES and path.as_posix() not in LONGER:
            yield f"{path.as_posix()} has {lines} lines"
        for name, length in long_functions(root, path, limit=MAX_FUNCTION_LINES).items():
            if name not in LONGER:
                yield f"{name} has {length} lines"


Rule = Callable[[Path], Iterator[str]]
RULES: list[Rule] = [
    unknown_units,
    upward_imports,
    study_imports,
    foreign_imports,
    misplaced_extras,
    distributed_imports,
    cycles,
    types_across_rooms,
    grab_bags,
    oversized,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_obeys(rule: Rule) -> None:
    assert list(rule(ROOT)) == []


def test_reasons_for_longer_things_are_still_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = dict(LONGER)
    monkeypatch.setattr(f"{__name__}.LONGER", {})
    found = " ".join(oversized(ROOT))
    assert all(name in found for name in reasons)


FUNCTION = "\n\ndef late():\n    "
LONG_FUNCTION = "\n\ndef long():\n" + "    x = 1\n" * 51
FAULTS: list[tuple[Rule, str, str, str]] = [
    (unknown_units, "attic.py", "", "attic is in no layer"),
    (
        upward_imports,
        "results/plan.py",
        "import rightbatch.cli",
        "results/plan.py must not import rightbatch",
    ),
    (
        upward_imports,
        "results/plan.py",
        "from rightbatch import cli",
        "must not import rightbatch.cli",
    ),
    (
        upward_imports,
        "results/plan.py",
        FUNCTION + "from rightbatch.cli import main",
        "results/plan.py must",
    ),
    (
        upward_imports,
        "results/plan.py",
        FUNCTION + "import rightbatch.task.data",
        "results/plan.py must",
    ),
    (
        upward_imports,
        "noise/estimators.py",
        "from rightbatch.lr import race",
        "noise/estimators.py",
    ),
    (upward_imports, "noise/estimators.py", "from ..lr import race", "import rightbatch.lr.race"),
    (upward_imports, "noise/estimators.py", "from .. import lr", "import rightbatch.lr"),
    (upward_imports, "hardware/memory.py", "import rightbatch.noise.probe", "hardware/memory.py"),
    (
        upward_imports,
        "task/data.py",
        "import rightbatch",
        "task/data.py must not import rightbatch",
    ),
    (upward_imports, "find.py", "from rightbatch import Task", "find.py must not import"),
    (upward_imports, "plan/choice.py", "from rightbatch.report import html", "plan/choice.py must"),
    (
        upward_imports,
        "_stats.py",
        "import importlib\nimportlib.import_module('rightbatch.plan')",
        "_stats.py must not import rightbatch.plan",
    ),
    (upward_imports, "find.py", "import rightbatch.studies", "find.py must not import rightbatch"),
    (upward_imports, "studies/exact.py", "import rightbatch.cli.session", "studies/exact.py must"),
    (
        study_imports,
        "studies/exact.py",
        "from rightbatch.noise.estimators import estimate_noise",
        "must go through the public API, not rightbatch.noise.estimators",
    ),
    (study_imports, "studies/exact.py", "from rightbatch import Task", "not rightbatch.Task"),
    (study_imports, "studies/study.py", FUNCTION + "import rightbatch.report.html", "report.html"),
    (foreign_imports, "errors.py", "import rich", "errors.py must not import rich"),
    (foreign_imports, "lr/curve.py", FUNCTION + "from pandas import x", "must not import pandas"),
    (misplaced_extras, "find.py", FUNCTION + "import optuna", "find.py must not import optuna"),
    (misplaced_extras, "tasks/mnist.py", "from sklearn import datasets", "import sklearn.datasets"),
    (distributed_imports, "noise/probe.py", "import torch.distributed as dist", "noise/probe.py"),
    (distributed_imports, "task/task.py", "from torch import distributed", "task/task.py must not"),
    (distributed_imports, "lr/curve.py", "from torch.distributed import barrier", "lr/curve.py"),
    (
        distributed_imports,
        "lr/race.py",
        FUNCTION + "torch.distributed.barrier()",
        "lr/race.py must",
    ),
    (cycles, "errors.py", "import rightbatch.results\nimport rightbatch.errors", "errors"),
    (
        types_across_rooms,
        "noise/probe.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rightbatch.lr import race",
        "not even for its types",
    ),
    (grab_bags, "noise/_utils.py", "", "noise/_utils.py must be named"),
    (oversized, "errors.py", "x = 1\n" * 400, "errors.py has "),
    (oversized, "errors.py", LONG_FUNCTION, "errors.py:long has 52 lines"),
]


@pytest.mark.parametrize(
    ("rule", "file", "code", "expected"),
    FAULTS,
    ids=[f"{rule.__name__}-{index}" for index, (rule, *_) in enumerate(FAULTS)],
)
def test_the_rule_sees_a_planted_fault(
    rule: Rule, file: str, code: str, expected: str, tmp_path: Path
) -> None:
    house = tmp_path / "rightbatch"
    shutil.copytree(ROOT, house, ignore=shutil.ignore_patterns("__pycache__"))
    with (house / file).open("a", encoding="utf-8") as planted:
        planted.write(f"\n{code}\n")
    before = set(rule(ROOT))
    found = [message for message in rule(house) if message not in before]
    assert any(expected in message for message in found), found


def test_docstrings_do_not_count_as_length(tmp_path: Path) -> None:
    code = 'def short():\n    """' + "words\n" * 60 + '    """\n    return 1\n'
    (tmp_path / "short.py").write_text(code)
    assert long_functions(tmp_path, Path("short.py"), limit=50) == {}
