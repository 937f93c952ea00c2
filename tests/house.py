"""What the source says of itself: who imports whom, and how long things are."""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = "rightbatch"


@dataclass(frozen=True)
class Import:
    """One name that a file imports, wherever in the file."""

    path: Path  # of the importing file, below the package
    name: str  # dotted, absolute, down to the imported name: "rightbatch.plan.plan"
    for_types: bool  # under `if TYPE_CHECKING`

    @property
    def unit(self) -> str:
        """The part of the house that imports: a file or a folder right below the package."""
        return unit_of(self.path)

    @property
    def imported_unit(self) -> str | None:
        """The part of the house that is imported, or ``None`` for another package's."""
        top, *rest = self.name.split(".")
        return (rest[0] if rest else "__init__") if top == PACKAGE else None


def unit_of(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def files_of(root: Path) -> list[Path]:
    """Python files below the package's folder, relative to it."""
    return sorted(path.relative_to(root) for path in root.rglob("*.py"))


def imports_of(root: Path, path: Path) -> tuple[Import, ...]:
    """Every import in a file: at the top, in functions, by attribute and by string."""
    return _imports_in((root / path).read_text(encoding="utf-8"), path)


@cache
def _imports_in(text: str, path: Path) -> tuple[Import, ...]:
    nodes = list(ast.walk(ast.parse(text)))
    for_types = {
        id(inner)
        for node in nodes
        if isinstance(node, ast.If) and _last_name(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    return tuple(
        Import(path, name, id(node) in for_types)
        for node in nodes
        for name in _imported_names(node, path)
    )


def _last_name(node: ast.AST) -> str:
    """``c`` of ``a.b.c``."""
    return getattr(node, "attr", None) or getattr(node, "id", "")


def _imported_names(node: ast.AST, path: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{_absolute(node, path)}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Attribute) and node.attr == "distributed":
        return ["torch.distributed"] if _last_name(node.value) == "torch" else []
    if isinstance(node, ast.Call) and _last_name(node.func) in {"import_module", "__import__"}:
        return [str(argument.value) for argument in node.args[:1] if hasattr(argument, "value")]
    return []


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    if node.level == 0:
        return node.module or ""
    folder = [PACKAGE, *path.parts[:-1]]
    parts = folder[: len(folder) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def module_of(path: Path) -> str:
    """The dotted name of a file below the package."""
    parts = [PACKAGE, *path.with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def long_functions(root: Path, path: Path, *, limit: int) -> dict[str, int]:
    """Functions with more lines than ``limit`` beside their docstring, and how many."""
    tree = ast.parse((root / path).read_text(encoding="utf-8"))
    lengths = {
        f"{path.as_posix()}:{node.name}": _length(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return {name: length for name, length in lengths.items() if length > limit}


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    documented = ast.get_docstring(node) is not None
    docstring = node.body[0]
    assert docstring.end_lineno is not None
    lines = docstring.end_lineno - docstring.lineno + 1 if documented else 0
    return node.end_lineno - node.lineno + 1 - lines
