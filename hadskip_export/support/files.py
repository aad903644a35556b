"""Files and folders that are there whole or not at all, whatever happens to the machine or to who writes them.

What is being written is called `.<name>.part` and carries a lock of the kernel's, which dies with its process. So one
that nobody holds is of a process that was killed, and the next to write there removes it; one that is held keeps a
second writer out.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hadskip_export.support.errors import BundleError, DataError

try:
    import fcntl
except ImportError:  # Windows: no such lock, and no fsync of what is open to read
    fcntl = None  # type: ignore[assignment]

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SCRATCH = "hadskip-export-"  # what temporary folders are called


def check_place(file: Path, option: str) -> None:
    """Before the work is done, not after.

    Raises:
        DataError: no file can be written there.
    """
    resolved(file)  # raises of a link to itself, of which nothing else here would
    if not file.absolute().parent.is_dir():
        raise DataError(f"{option} {file}: no folder {file.parent}; make it first")
    if file.is_dir():
        raise DataError(f"{option} {file}: is a folder; name a file")
    if not os.access(file if file.exists() and not file.is_file() else file.absolute().parent, os.W_OK):
        raise DataError(f"{option} {file}: cannot be written there; name a file in another folder")


def resolved(file: Path) -> Path:
    """Where links lead.

    Raises:
        DataError: to themselves.
    """
    try:
        return file.resolve()
    except RuntimeError:
        raise DataError(f"{file}: a link that leads to itself; remove it, or name another file") from None


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """A path beside `file`, whose place what is written there takes when the block ends well. Else nothing is left. A
    link stays, and what it leads to is replaced; what is no file, such as a pipe, is written to as it is.

    Raises:
        BundleError: another process is writing it.
        OSError: it cannot be written; names `file`.
    """
    if file.exists() and not file.is_file():  # before it is resolved: a pipe of this process leads to no name
        with named(file):
            yield file
        return
    file = resolved(file)
    with _part(file, _create_file) as part:
        yield part


@contextmanager
def new_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """The same for a folder, whose parents are made. There is none yet, or an empty one, unless one is to be replaced:
    by two renames, the first of which makes way."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    old = folder.with_name(f".{folder.name}.old")
    with _part(folder, _create_folder) as part:
        _remove(old)  # of a process that was killed in the middle of this
        yield part
        if replace and folder.is_dir():
            os.replace(folder, old)
    _remove(old)


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, which is gone in the end; those of processes that were killed go, too."""
    for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        with suppress(OSError):  # another user's, or another process is faster
            handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if _lock(handle):
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(handle)
    folder, handle = _locked_folder()
    try:
        with named(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def caches() -> Path:
    """The user's folder of caches; one that cannot be where the user has no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return Path(os.devnull)


def _locked_folder() -> tuple[Path, int]:
    """A new temporary folder, and its descriptor. Until it is locked, who sweeps may take it for a leftover."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=SCRATCH))
        with suppress(FileNotFoundError):
            handle = os.open(folder, os.O_RDONLY)
            if _lock(handle) and _leads_to(folder, handle):
                return folder, handle
            os.close(handle)


@contextmanager
def named(path: Path, part: Path | None = None) -> Iterator[None]:
    """Errors of a full disk as an OSError that names `path`. What the system says when it has no room has no name in
    Python, and libraries make errors of their own of it. `part`: its name while it is written.

    Raises:
        OSError: there is no room, or `part` cannot be written.
    """
    try:
        yield
    except Exception as error:
        number, name = _system_error(error)
        if name and part is not None and Path(name).is_relative_to(part):
            raise OSError(number, os.strerror(number), str(path / Path(name).relative_to(part))) from error
        if name or number not in NO_ROOM:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def sync(*places: Path) -> None:
    """Puts files, and folders as lists of names, on the disk: there they are after a loss of power, too."""
    for place in places if fcntl else ():
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if place.is_file():
                raise OSError(error.errno, error.strerror, str(place)) from error
            # some file systems cannot for folders
        finally:
            os.close(handle)


@contextmanager
def _part(path: Path, create: Callable[[Path], int]) -> Iterator[Path]:
    """`.<name>.part` beside `path`, empty and this process's alone, which in the end is renamed or removed."""
    part, handle = path.with_name(f".{path.name}.part"), None
    with named(path, part):
        try:
            handle = _claim(path, part, create)
            _empty(part)
            yield part
            sync(*(part.rglob("*") if part.is_dir() else ()), part)
            os.replace(part, path)
            sync(path.parent)
        except BaseException:
            if handle is not None and _leads_to(part, handle):
                _remove(part)
            raise
        finally:
            if handle is not None:
                os.close(handle)


def _claim(path: Path, part: Path, create: Callable[[Path], int]) -> int:
    """Opens `part`, made if there is none, and locks it; returns its descriptor."""
    while True:
        handle = create(part)
        if not _lock(handle):
            os.close(handle)
            raise BundleError(f"{path}: another process is writing it; wait until it is done, or name another place")
        if _leads_to(part, handle):
            return handle
        os.close(handle)  # who had it has just renamed or removed it


def _create_file(part: Path) -> int:
    return os.open(part, os.O_RDWR | os.O_CREAT, 0o666)


def _create_folder(part: Path) -> int:
    while True:
        with suppress(FileExistsError):
            os.mkdir(part)
        with suppress(FileNotFoundError):  # who had it has just renamed or removed it
            return os.open(part, os.O_RDONLY | os.O_DIRECTORY)


def _lock(handle: int) -> bool:
    try:
        if fcntl:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _leads_to(part: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(part), os.fstat(handle))
    except FileNotFoundError:
        return False


def _empty(part: Path) -> None:
    """Of what a killed process left."""
    if part.is_dir():
        for left in part.iterdir():
            _remove(left)
    else:
        os.truncate(part, 0)


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _system_error(error: BaseException) -> tuple[int, str | None]:
    """The number of the error of the system that is behind another, and the file that it names; (0, None) of none."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError) and behind.errno:
            return behind.errno, os.fsdecode(behind.filename) if behind.filename else None
        if said := re.search(r"os error (\d+)", str(behind)):  # what is written in Rust
            return int(said[1]), None
        if spoken := [number for number in NO_ROOM if os.strerror(number) in str(behind)]:
            return spoken[0], None
        behind = behind.__cause__ or behind.__context__
    return 0, None
