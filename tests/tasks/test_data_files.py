"""Finding data files: every place in turn, and nothing half-done left. Oracle: the bytes."""

import hashlib
import http.client
import io
import re
import urllib.error
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rightbatch.errors import DataUnavailable
from rightbatch.tasks.data_files import DataFile, cache_folder, file_sha256, locate

CONTENT = b"the public file " * 50_000  # several chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FILE = DataFile(name="numbers.bin", url="https://example.org/numbers.bin", sha256=SHA256)


class Response(io.BytesIO):
    """What an opened address gives: bytes and headers; may break off after the first chunk."""

    def __init__(
        self, content: bytes, *, error: BaseException | None = None, announced: bool = True
    ) -> None:
        super().__init__(content)
        self.headers = {"Content-Length": str(len(content))} if announced else {}
        self.error = error

    def read(self, size: int | None = -1, /) -> bytes:
        if self.error is not None and self.tell() > 0:
            raise self.error
        return super().read(size)


def serving(response: Response) -> Callable[[str], Response]:
    return lambda url: response


def unreachable(url: str) -> Any:
    raise urllib.error.URLError("no route to host")


def zipped(member: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, CONTENT)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No folder of the user's, and an empty cache."""
    monkeypatch.delenv("RIGHTBATCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rightbatch"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setenv("RIGHTBATCH_DATA", str(folder))
    return folder


def put(folder: Path, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE.name).write_bytes(content)
    return folder / FILE.name


def test_own_folder_comes_before_the_cache_and_is_not_checksummed(own: Path, cache: Path) -> None:
    put(cache, CONTENT)
    mine = put(own, b"a copy of my own")
    assert locate(FILE, open_url=unreachable) == mine


def test_cache_comes_before_the_network(own: Path, cache: Path) -> None:
    kept = put(cache, CONTENT)
    assert locate(FILE, open_url=unreachable) == kept


def test_a_download_is_kept_whole_under_its_name_alone(cache: Path) -> None:
    told: list[tuple[float, str]] = []
    path = locate(
        FILE,
        open_url=serving(Response(CONTENT)),
        progress=lambda fraction, note: told.append((fraction, note)),
    )
    assert path.read_bytes() == CONTENT
    assert [p.name for p in cache.iterdir()] == [FILE.name]
    fractions = [fraction for fraction, _ in told]
    assert len(fractions) > 1
    assert fractions == sorted(fractions)
    assert told[-1] == (1.0, "downloading numbers.bin")


def test_a_download_of_unknown_size_is_told_as_nothing_done_yet() -> None:
    told: list[float] = []
    locate(
        FILE,
        open_url=serving(Response(CONTENT, announced=False)),
        progress=lambda fraction, _: told.append(fraction),
    )
    assert set(told) == {0.0}


def test_the_default_opener_fetches_an_address(tmp_path: Path, cache: Path) -> None:
    public = tmp_path / "public.bin"
    public.write_bytes(CONTENT)
    file = DataFile(name="numbers.bin", url=public.as_uri(), sha256=SHA256)
    assert locate(file).read_bytes() == CONTENT


def test_a_member_of_a_zip_archive_is_unpacked_and_the_archive_dropped(
    tmp_path: Path, cache: Path
) -> None:
    public = tmp_path / "public.zip"
    public.write_bytes(zipped("inner.bin"))
    file = DataFile(name="numbers.bin", url=public.as_uri(), sha256=SHA256, member="inner.bin")
    assert locate(file).read_bytes() == CONTENT
    assert [p.name for p in cache.iterdir()] == ["numbers.bin"]


@pytest.mark.parametrize(
    "content",
    [zipped("other.bin"), b"<html>gone</html>", zipped("x")[:99]],
    ids=["other member", "web page", "truncated"],  # a zip holds the time it was made
)
def test_an_archive_without_the_member_is_an_error(content: bytes, cache: Path) -> None:
    file = DataFile(name="numbers.bin", url=FILE.url, sha256=SHA256, member="inner.bin")
    with pytest.raises(DataUnavailable, match=r"zip archive with 'inner.bin' in it, got \w+: "):
        locate(file, open_url=serving(Response(content)))
    assert list(cache.iterdir()) == []


def test_a_wrong_checksum_is_an_error_and_nothing_is_kept(cache: Path) -> None:
    wrong = CONTENT[:-1]
    got = hashlib.sha256(wrong).hexdigest()
    with pytest.raises(DataUnavailable, match=f"must be {SHA256}, got {got}.*nothing was kept"):
        locate(FILE, open_url=serving(Response(wrong)))
    assert list(cache.iterdir()) == []


def test_a_member_with_a_wrong_checksum_is_not_kept_either(cache: Path) -> None:
    file = DataFile(name="numbers.bin", url=FILE.url, sha256="other", member="inner.bin")
    with pytest.raises(DataUnavailable, match=f"must be other, got {SHA256}"):
        locate(file, open_url=serving(Response(zipped("inner.bin"))))
    assert list(cache.iterdir()) == []


def test_the_checksum_may_be_one_of_what_is_in_the_file(cache: Path) -> None:
    file = DataFile(
        name="numbers.bin",
        url=FILE.url,
        sha256="same words",
        digest=lambda path: path.read_text().strip(),
    )
    assert locate(file, open_url=serving(Response(b"same words\n"))) == cache / "numbers.bin"


def test_offline_says_which_file_to_put_where(cache: Path) -> None:
    with pytest.raises(DataUnavailable, match="no route to host") as caught:
        locate(FILE, open_url=unreachable)
    message = str(caught.value)
    assert "'numbers.bin' in a folder of yours and set $RIGHTBATCH_DATA" in message
    assert FILE.url in message
    assert isinstance(caught.value.__cause__, urllib.error.URLError)
    assert list(cache.iterdir()) == []


def test_offline_with_an_own_folder_names_that_folder_and_the_public_member(own: Path) -> None:
    file = DataFile(name="numbers.bin", url=FILE.url, sha256=SHA256, member="inner.bin")
    advice = f"put inner.bin of {FILE.url} under the name 'numbers.bin' in {str(own)!r}"
    with pytest.raises(DataUnavailable, match=re.escape(advice)):
        locate(file, open_url=unreachable)


@pytest.mark.parametrize(
    "error", [ConnectionResetError("reset by peer"), http.client.IncompleteRead(b"half")]
)
def test_a_line_that_breaks_leaves_nothing_behind(error: Exception, cache: Path) -> None:
    with pytest.raises(DataUnavailable, match=f"failed: {type(error).__name__}"):
        locate(FILE, open_url=serving(Response(CONTENT, error=error)))
    assert list(cache.iterdir()) == []


def test_ctrl_c_passes_and_leaves_nothing_behind(cache: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="half-way"):
        locate(FILE, open_url=serving(Response(CONTENT, error=KeyboardInterrupt("half-way"))))
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("kind", ["absent", "file"])
def test_an_own_folder_that_is_none_is_an_error(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    put(cache, CONTENT)  # not looked at: the variable says otherwise
    (tmp_path / "file").touch()
    monkeypatch.setenv("RIGHTBATCH_DATA", str(tmp_path / kind))
    with pytest.raises(DataUnavailable, match=rf"`\$RIGHTBATCH_DATA` must be a folder.*{kind}'"):
        locate(FILE, open_url=unreachable)


def test_an_empty_variable_names_no_folder(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("RIGHTBATCH_DATA", "")
    kept = put(cache, CONTENT)
    assert locate(FILE, open_url=unreachable) == kept


def test_an_own_folder_may_begin_with_a_tilde(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = put(own, b"mine")
    monkeypatch.setenv("HOME", str(own.parent))
    monkeypatch.setenv("RIGHTBATCH_DATA", "~/own")
    assert locate(FILE, open_url=unreachable) == mine


def test_a_cache_that_cannot_be_made_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataUnavailable, match=r"file/rightbatch' cannot be made: .*XDG_CACHE_HOME"):
        locate(FILE, open_url=serving(Response(CONTENT)))


@pytest.mark.parametrize("value", ["", "relative/cache"])
def test_the_cache_is_under_home_by_default(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_folder() == tmp_path / ".cache" / "rightbatch"


def test_digest_of_a_file_is_the_sha256_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")  # the standard's own example
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
