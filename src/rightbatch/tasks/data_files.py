"""Where a built-in task's data file is: the user's folder, the cache, or its public home.

A file that the user placed in ``$RIGHTBATCH_DATA`` is taken as it is, because a copy may
differ in harmless ways from the public one (compression, date style); its reader checks its
keys, columns and shapes. A file that we download is checked against a SHA-256 before it gets
its name, so a file in the cache is whole.
"""

import hashlib
import http.client
import os
import shutil
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from rightbatch._time import Progress, no_progress
from rightbatch.errors import DataUnavailable

FOLDER_VARIABLE = "RIGHTBATCH_DATA"

OpenURL = Callable[[str], Any]  # an address -> a response to read, with headers; closes by `with`

_TIMEOUT_SECONDS = 30.0  # of one silence on the line, not of the whole download
_CHUNK_BYTES = 1 << 18


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """A data file and its public home."""

    name: str  # in $RIGHTBATCH_DATA and in the cache
    url: str
    sha256: str  # what `digest` gives for the public file
    member: str | None = None  # of the zip archive at `url`; None: the file itself is there
    digest: Callable[[Path], str] = file_sha256


def open_url(url: str) -> Any:
    """Open an address for reading; give up after half a minute of silence."""
    return urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS)


def locate(
    file: DataFile, *, open_url: OpenURL = open_url, progress: Progress = no_progress
) -> Path:
    """Find a data file, downloading it if it is nowhere here.

    Looks in ``$RIGHTBATCH_DATA``, then in the cache (``$XDG_CACHE_HOME/rightbatch``, by default
    ``~/.cache/rightbatch``), then at the file's public home. Only a download is checked against
    the SHA-256: what is done with a file of your own is up to its reader.

    Args:
        file: What to find.
        open_url: Opens the public home; tests pass their own.
        progress: Told the downloaded fraction, 0 where the size is not announced.

    Returns:
        Where the file is now.

    Raises:
        DataUnavailable: If ``$RIGHTBATCH_DATA`` is no folder, or the file is not here and cannot
            be downloaded, or what came is not the public file. Nothing is kept then.
    """
    return find_here(file) or _download(file, cache_folder(), open_url, progress)


def find_here(file: DataFile) -> Path | None:
    """Look in ``$RIGHTBATCH_DATA`` and in the cache only.

    Raises:
        DataUnavailable: If ``$RIGHTBATCH_DATA`` is no folder.
    """
    folders = (folder for folder in (_own_folder(), cache_folder()) if folder is not None)
    return next((folder / file.name for folder in folders if (folder / file.name).is_file()), None)


def cache_folder() -> Path:
    """Return the folder that keeps downloads; it need not exist yet."""
    # The XDG specification says to ignore relative paths.
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "rightbatch"


def _own_folder() -> Path | None:
    value = os.environ.get(FOLDER_VARIABLE)
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise DataUnavailable(
            f"`${FOLDER_VARIABLE}` must be a folder that exists, got {value!r}. "
            "Built-in tasks look for their data there first: create the folder, correct the "
            "variable, or unset it to download."
        )
    return folder


def _download(file: DataFile, cache: Path, open_url: OpenURL, progress: Progress) -> Path:
    # The process number keeps two downloads at once from writing into one file.
    fetched = cache / f"{file.name}.{os.getpid()}.partial"
    unpacked = fetched.with_suffix(".unpacked.partial")
    _make_folder(cache, file)
    try:
        _fetch(file, fetched, open_url, progress)
        whole = fetched if file.member is None else _unpack(file, fetched, unpacked)
        _check_digest(file, whole)
        return whole.replace(cache / file.name)
    finally:  # also after Ctrl-C
        fetched.unlink(missing_ok=True)
        unpacked.unlink(missing_ok=True)


def _make_folder(cache: Path, file: DataFile) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataUnavailable(
            f"the cache folder {str(cache)!r} cannot be made: {error}. "
            f"Set XDG_CACHE_HOME to a folder that can be written. {_placing(file)}"
        ) from error


def _fetch(file: DataFile, target: Path, open_url: OpenURL, progress: Progress) -> None:
    try:
        with open_url(file.url) as response, target.open("wb") as out:
            total = int(response.headers.get("Content-Length") or 0)
            done = 0
            while chunk := response.read(_CHUNK_BYTES):
                done += out.write(chunk)
                progress(min(1.0, done / total) if total else 0.0, f"downloading {file.name}")
    except (OSError, http.client.HTTPException) as error:
        raise DataUnavailable(
            f"the data file {file.name!r} is not here, and downloading it from {file.url} "
            f"failed: {type(error).__name__}: {error}. {_placing(file)}"
        ) from error


def _unpack(file: DataFile, archive: Path, target: Path) -> Path:
    try:
        with (
            zipfile.ZipFile(archive) as zipped,
            zipped.open(str(file.member)) as member,
            target.open("wb") as out,
        ):
            shutil.copyfileobj(member, out)
    except (OSError, zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise DataUnavailable(
            f"what {file.url} sent must be a zip archive with {file.member!r} in it, got "
            f"{type(error).__name__}: {error}. Nothing was kept: try again later. {_placing(file)}"
        ) from error
    return target


def _check_digest(file: DataFile, path: Path) -> None:
    got = file.digest(path)
    if got != file.sha256:
        raise DataUnavailable(
            f"what {file.url} sent is not the public {file.name!r}: its SHA-256 must be "
            f"{file.sha256}, got {got}. The download broke off or its home changed; nothing was "
            f"kept: try again later. {_placing(file)}"
        )


def _placing(file: DataFile) -> str:
    own = os.environ.get(FOLDER_VARIABLE)
    source = f"{file.url}" if file.member is None else f"{file.member} of {file.url}"
    place = (
        f"in {own!r}, which ${FOLDER_VARIABLE} names"
        if own
        else f"in a folder of yours and set ${FOLDER_VARIABLE} to that folder"
    )
    return f"Without a download, put {source} under the name {file.name!r} {place}."
