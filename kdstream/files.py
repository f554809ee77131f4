"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from kdstream.errors import UserError, option

CUT_SUFFIXES = (".jsonl.gz", ".jsonl")  # of manifests of cuts that are written

# What the system may say of any file that is read or written, and what the user can do about it.
MENDED_BY_USER = {
    errno.ENOSPC: "free space on its disk, or name another place",
    errno.EDQUOT: "free space on its disk, or name another place",
    errno.EFBIG: "free space on its disk, or name another place",
    errno.EACCES: "ask for its permissions, or name another place",
    errno.EPERM: "ask for its permissions, or name another place",
    errno.EROFS: "name a place that can be written",
    errno.EIO: "look whether its disk is sound",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "name a place in a directory",
    errno.EEXIST: "name another place",
}
TEMPORARY = ".tmp"


def check_output_of_cuts(output: Path, cuts: Iterable[Path]) -> None:
    """Raises UserError for an --output that is no name of a manifest of cuts, or one of the manifests of --cuts."""
    if not output.name.endswith(CUT_SUFFIXES):
        raise UserError(f"must be named {' or '.join(CUT_SUFFIXES)}", flag=option("output", output), fix="rename it")
    if output.resolve() in [path.resolve() for path in cuts]:
        raise UserError("is what --cuts names", flag=option("output", output), fix="give it another name")


def read_utf8(path: Path, flag: str = "") -> str:
    """The text of a file; the mark of its encoding, which some editors write first, is no part of it.

    Args:
      flag: that names the file, with its value; see `option`.
    Raises:
      UserError: there is no such file, the system does not let it be read, or its text is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        problem = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(problem, flag=flag or str(path), fix="name a text file") from error
    except UnicodeDecodeError as error:
        problem = f"is not in UTF-8 ({error})"
        raise UserError(problem, flag=flag or str(path), fix="convert it, say with iconv") from error


@contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """Gives a temporary file to write; on success it takes the place of `path`, on failure it goes away.

    A process that is killed leaves `path` as it was, and perhaps the temporary file: .NAME.tmp, which the next one
    that writes `path` overwrites.

    Args:
      suffix: of the temporary file, for writers that choose a format by it.
    Raises:
      UserError: the disk is full, or `path` must not be written.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY}{suffix}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full disk, and what else keeps the system from writing, into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in MENDED_BY_USER:
            raise
        problem = f"{path}: cannot be written ({os.strerror(error.errno)})"
        raise UserError(problem, fix=f"{MENDED_BY_USER[error.errno]}, then repeat the command") from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all.  Raises UserError as `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf8")


def try_lock(file: int, wait: bool = False) -> bool | None:
    """Locks an open file or folder for this process, until it is closed or the process ends.

    Args:
      wait: until no other process has locked it.
    Returns:
      False if another process has locked it, and None where there are no locks (Windows, some network disks).
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes that lock `folder` waiting.  Where there are no locks, it keeps out nobody."""
    descriptor = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if descriptor is not None:
            try_lock(descriptor, wait=True)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def sha256_of(path: Path) -> str:
    """A hash of what a file holds, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
