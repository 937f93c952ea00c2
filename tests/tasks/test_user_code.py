"""Tasks from users' files and modules, and what goes wrong there. Oracle: the files written."""

import os
import pickle
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import rightbatch.tasks
from rightbatch.errors import TaskError
from rightbatch.tasks import load_task

GOOD = """
import torch
import rightbatch.task

def make_task():
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr={rate})
    data = [(torch.ones(1), torch.ones(1))] * {count}
    loss = rightbatch.task.supervised(torch.nn.functional.mse_loss)
    return rightbatch.task.Task(model, optimizer, data, loss, name=__name__)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Be in an empty folder; forget afterwards what was imported from it."""
    path = list(sys.path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        own = getattr(module, "__dict__", {})
        if str(tmp_path) in f"{own.get('__file__')} {own.get('__path__')}":
            del sys.modules[name]


def write(path: Path, text: str = "", *, rate: float = 0.1, count: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or GOOD.format(rate=rate, count=count))
    return path


def test_a_function_of_a_file_gives_its_task(folder: Path) -> None:
    write(folder / "lab" / "a_train.py", count=7)
    assert load_task("lab/a_train.py:make_task").num_examples == 7
    assert load_task(f"{folder}/lab/a_train.py:make_task").num_examples == 7


def test_a_function_of_a_module_in_the_current_folder_gives_its_task(folder: Path) -> None:
    write(folder / "lab" / "b_train.py", count=5)
    assert load_task("lab.b_train:make_task").num_examples == 5


def test_a_tilde_is_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "home"))
    write(folder / "home" / "c_train.py", count=6)
    assert load_task("~/c_train.py:make_task").num_examples == 6


def test_an_edited_file_is_read_again(folder: Path) -> None:
    write(folder / "d_train.py", count=3)
    assert load_task("d_train.py:make_task").num_examples == 3
    write(folder / "d_train.py", count=9)
    assert load_task("d_train.py:make_task").num_examples == 9


def test_a_file_written_since_the_last_import_is_found(folder: Path) -> None:
    write(folder / "w_one.py", count=3)
    load_task("w_one:make_task")
    seen = folder.stat()
    write(folder / "w_two.py", count=5)
    os.utime(folder, ns=(seen.st_atime_ns, seen.st_mtime_ns))  # too soon for the clock to tell
    assert load_task("w_two:make_task").num_examples == 5


@pytest.mark.parametrize("place", ["lab/e_train.py", "lab.e_train"])
def test_siblings_are_importable_while_loading_while_calling_and_later(
    folder: Path, place: str
) -> None:
    root = folder / "lab" if place.endswith(".py") else folder
    for name in ("e_first", "e_second", "e_third"):
        write(root / f"{name}.py", "value = 1")
    body = "import e_first\n" + GOOD.format(rate=0.1, count=4).replace(
        "    model", "    import e_second\n    model", 1
    )
    write(folder / "lab" / "e_train.py", body)
    before = list(sys.path)
    load_task(f"{place}:make_task")
    __import__("e_third")  # as a loss may do at its first call
    assert sys.path == [*before, str(root)]
    load_task(f"{place}:make_task")
    assert sys.path == [*before, str(root)]


def test_a_files_folder_hides_no_module_of_others(folder: Path) -> None:
    write(folder / "f_train.py")
    write(folder / "colorsys.py", "raise RuntimeError('the wrong one')")
    sys.modules.pop("colorsys", None)
    load_task("f_train.py:make_task")
    assert "lib" in str(__import__("colorsys").__file__)


def test_a_file_called_like_a_module_does_not_become_it(folder: Path) -> None:
    import random

    write(folder / "random.py")
    write(folder / "wave.py")  # of the standard library, but not imported yet
    sys.modules.pop("wave", None)
    assert "_rightbatch_task_" in load_task("random.py:make_task").name
    assert "_rightbatch_task_" in load_task("wave.py:make_task").name
    assert sys.modules["random"] is random
    assert hasattr(__import__("wave"), "Wave_read")


def test_two_files_of_one_name_stay_apart(folder: Path) -> None:
    write(folder / "one" / "g_train.py", count=3)
    write(folder / "two" / "g_train.py", count=8)
    sizes = [load_task(f"{where}/g_train.py:make_task").num_examples for where in ("one", "two")]
    assert sizes == [3, 8]


def test_a_dashed_name_works(folder: Path) -> None:
    write(folder / "h-train.v2.py", count=3)
    assert load_task("h-train.v2.py:make_task").num_examples == 3


DATASET = """
class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return torch.ones(1), torch.ones(1)
"""


def test_a_fresh_process_finds_the_files_classes(folder: Path) -> None:
    text = GOOD.format(rate=0.1, count=4).replace("def make_task", DATASET + "\ndef make_task")
    text = text.replace("[(torch.ones(1), torch.ones(1))] * 4", "Numbers()")
    write(folder / "lab" / "i_train.py", text)
    dataset = load_task("lab/i_train.py:make_task").source.dataset
    sent = pickle.dumps(dataset)
    del sys.modules["i_train"]  # what a new process begins with: the path, but not the module
    assert len(pickle.loads(sent)) == 4


def test_a_file_that_does_not_exist_offers_near_ones(folder: Path) -> None:
    write(folder / "lab" / "train_model.py")
    message = r"got 'lab/train_modle.py', which is not there \(seen from .*mean train_model.py\?"
    with pytest.raises(TaskError, match=message):
        load_task("lab/train_modle.py:make_task")
    with pytest.raises(TaskError, match=r"'nowhere/x.py', which is not there"):
        load_task("nowhere/x.py:make_task")


def test_a_folder_is_not_a_file(folder: Path) -> None:
    (folder / "lab.py").mkdir()
    with pytest.raises(TaskError, match=r"got 'lab.py', which is a folder"):
        load_task("lab.py:make_task")


def test_a_file_that_is_not_python_is_named(folder: Path) -> None:
    write(folder / "lab" / "notes.txt", "hello")
    with pytest.raises(TaskError, match=r"ending in \.py, got 'lab/notes.txt'"):
        load_task("lab/notes.txt:make_task")


@pytest.mark.parametrize("place", ["absent_module", "lab.absent", "absent_package.train"])
def test_a_module_that_does_not_exist_is_named(folder: Path, place: str) -> None:
    write(folder / "lab" / "__init__.py", "# empty")
    missing = "absent_package" if place.startswith("absent_p") else place
    with pytest.raises(TaskError, match=f"got {place!r}: there is no {missing!r} in") as caught:
        load_task(f"{place}:make_task")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_missing_import_of_the_users_is_not_taken_for_a_missing_module(folder: Path) -> None:
    write(folder / "j_train.py", "import pandas_of_old")
    message = "importing j_train failed with ModuleNotFoundError: No module named 'pandas_of_old'"
    with pytest.raises(TaskError, match=message + r" \(j_train\.py, line 1\)"):
        load_task("j_train:make_task")


@pytest.mark.parametrize(
    ("function", "advice"),
    [
        ("make_tsk", r"Did you mean make_task\?"),
        ("build", r"Its functions are: make_task\."),
        ("", r"Its functions are: make_task\."),
    ],
)
def test_a_function_that_does_not_exist_offers_near_ones(
    folder: Path, function: str, advice: str
) -> None:
    write(folder / "k_train.py", GOOD.format(rate=0.1, count=4) + "\ndef _private(): ...\n")
    with pytest.raises(TaskError, match=f"'k_train.py' must have .* got {function!r}. {advice}"):
        load_task(f"k_train.py:{function}")


def test_a_file_without_functions_says_so(folder: Path) -> None:
    write(folder / "l_train.py", "from posixpath import join")
    with pytest.raises(TaskError, match=r"got 'make_task'. It has no function"):
        load_task("l_train.py:make_task")


@pytest.mark.parametrize(
    ("error", "named"),
    [
        ("ValueError('no such column: age')", "ValueError: no such column: age"),
        ("KeyError('age')", "KeyError: 'age'"),
        ("AssertionError", "AssertionError: no message"),
        ("SystemExit(2)", "SystemExit: 2"),
    ],
)
@pytest.mark.parametrize("when", ["loading", "calling"])
def test_a_users_error_is_named_with_its_line_and_chained(
    folder: Path, when: str, error: str, named: str
) -> None:
    indent, deed = ("", "m_train.py") if when == "loading" else ("    ", "m_train.py:make_task")
    text = f"{indent}raise {error}" if when == "loading" else f"def make_task():\n    raise {error}"
    write(folder / "m_train.py", text)
    line = 1 if when == "loading" else 2
    message = f"{when} {deed} failed with {named} (m_train.py, line {line})"
    with pytest.raises(TaskError, match=re.escape(message)) as caught:
        load_task("m_train.py:make_task")
    assert type(caught.value.__cause__).__name__ == named.split(":")[0]


def test_the_line_is_the_users_not_that_of_a_package_beside_it(folder: Path) -> None:
    write(folder / "site-packages" / "v_package.py", "def fit():\n    raise ValueError('deep')")
    text = """
        import sys
        sys.path.append('site-packages')
        import v_package
        def make_task():
            v_package.fit()
    """
    write(folder / "v_train.py", textwrap.dedent(text).strip())
    with pytest.raises(TaskError, match=r"ValueError: deep \(v_train\.py, line 5\)"):
        load_task("v_train.py:make_task")


def test_no_line_is_named_where_none_of_the_users_ran(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "x_train.py", "def make_task(rate): ...")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(Path(rightbatch.tasks.__file__).parents[2])  # where our own lines are too
    with pytest.raises(TaskError, match=r"argument: 'rate'\. This comes from the code"):
        load_task("x_train:make_task")


def test_a_syntax_error_is_named(folder: Path) -> None:
    write(folder / "n_train.py", "def make_task(:")
    with pytest.raises(TaskError, match=r"failed with SyntaxError: .*n_train.py, line 1"):
        load_task("n_train.py:make_task")


def test_a_clear_error_of_ours_comes_through_unchanged(folder: Path) -> None:
    write(folder / "o_train.py", rate=0.0)
    with pytest.raises(TaskError, match=r"^`optimizer` must have a positive.* got lr=0.0"):
        load_task("o_train.py:make_task")


@pytest.mark.parametrize("when", ["loading", "calling"])
def test_ctrl_c_passes(folder: Path, when: str) -> None:
    text = "raise KeyboardInterrupt('half-way')"
    write(folder / "p_train.py", text if when == "loading" else f"def make_task():\n    {text}")
    before = list(sys.path)
    with pytest.raises(KeyboardInterrupt, match="half-way"):
        load_task("p_train.py:make_task")
    assert sys.path == before


@pytest.mark.parametrize("text", ["raise ValueError", "def make_task():\n    return 1"])
def test_after_an_error_the_import_path_is_as_before(folder: Path, text: str) -> None:
    write(folder / "q_train.py", text)
    before = list(sys.path)
    with pytest.raises(TaskError, match=r"q_train\.py"):
        load_task("q_train.py:make_task")
    assert sys.path == before


def test_a_file_that_fails_to_load_leaves_no_module(folder: Path) -> None:
    write(folder / "r_train.py", "raise ValueError")
    with pytest.raises(TaskError, match="ValueError"):
        load_task("r_train.py:make_task")
    assert "r_train" not in sys.modules


def test_a_file_that_fails_to_load_anew_leaves_the_old_module(folder: Path) -> None:
    write(folder / "y_train.py", count=3)
    load_task("y_train.py:make_task")
    old = sys.modules["y_train"]
    write(folder / "y_train.py", "raise ValueError")
    with pytest.raises(TaskError, match="ValueError"):
        load_task("y_train.py:make_task")
    assert sys.modules["y_train"] is old


@pytest.mark.parametrize(
    ("value", "got"),
    [("None", "got None"), ("(1, 2)", "got an object of type tuple"), ("int", "of type type")],
)
def test_a_function_that_returns_something_else_is_told_what_to_return(
    folder: Path, value: str, got: str
) -> None:
    write(folder / "s_train.py", f"def make_task():\n    return {value}")
    with pytest.raises(TaskError, match=rf"must return a rightbatch\.Task, .*{got}.*End it with"):
        load_task("s_train.py:make_task")


def test_a_task_that_is_not_a_function_is_told_how_to_wrap_it(folder: Path) -> None:
    write(folder / "t_train.py", GOOD.format(rate=0.1, count=4) + "\ntask = make_task()\n")
    message = "must be a function .*, got an object of type Task. Wrap it: .*return task"
    with pytest.raises(TaskError, match=message):
        load_task("t_train.py:task")


def test_a_function_that_wants_arguments_is_told(folder: Path) -> None:
    write(folder / "u_train.py", "def make_task(rate):\n    return rate")
    with pytest.raises(TaskError, match=r"TypeError: .*missing 1 required.*'rate'"):
        load_task("u_train.py:make_task")
