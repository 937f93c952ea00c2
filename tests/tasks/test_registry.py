"""From a user's words to a task. Oracle: the task that was meant."""

from pathlib import Path

import pytest

from rightbatch.errors import TaskError
from rightbatch.tasks import BUILT_IN, load_task
from tests.tasks.small_files import write_bikes

pytestmark = pytest.mark.usefixtures("float32")


def test_a_built_in_name_gives_that_task() -> None:
    assert load_task("digits").name == "digits"


def test_a_built_in_name_finds_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bikes(tmp_path)
    monkeypatch.setenv("RIGHTBATCH_DATA", str(tmp_path))
    assert load_task("bikes").num_examples == 96


def test_the_download_of_a_built_in_task_tells_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = tmp_path / "hour.csv"
    public.write_text(write_bikes(tmp_path).read_text())
    entry = BUILT_IN["bikes"]
    assert entry.data_file is not None
    file = type(entry.data_file)(
        name="bike_sharing_hour.csv", url=public.as_uri(), sha256="any", digest=lambda _: "any"
    )
    changed = type(entry)(**{f: getattr(entry, f) for f in entry.__slots__} | {"data_file": file})
    monkeypatch.setitem(BUILT_IN, "bikes", changed)
    monkeypatch.delenv("RIGHTBATCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    told: list[float] = []
    task = load_task("bikes", progress=lambda fraction, note: told.append(fraction))
    assert (task.num_examples, told) == (96, [1.0])


@pytest.mark.parametrize(
    ("spec", "advice"),
    [
        ("mnits", r"Did you mean mnist\?"),
        ("MNIST", r"Did you mean mnist\?"),
        ("digit", r"Did you mean digits\?"),
        ("shakespear", r"Did you mean shakespeare\?"),
        ("resnet50", "`rightbatch tasks` lists"),
        ("", "`rightbatch tasks` lists"),
        (":make", "`rightbatch tasks` lists"),
        ("train.py", r"such as train\.py:make_task"),
        ("C:/own/train.py", r"such as C:/own/train\.py:make_task"),
    ],
)
def test_an_unknown_name_offers_the_nearest(spec: str, advice: str) -> None:
    with pytest.raises(
        TaskError, match=f"digits, mnist, bikes, shakespeare.*got {spec!r}.*{advice}"
    ):
        load_task(spec)
