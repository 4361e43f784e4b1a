"""What SQLite's errors mean for a queue.

They are told apart by their words: Python has their codes from 3.11 on only.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from synmanager.errors import (
    AccessRefused,
    BrokerUnavailable,
    InvalidJob,
    SynmanagerError,
    TopologyError,
)

__all__ = ["Full", "Locked", "damaged", "is_busy", "translate", "why_not_written"]

_BUSY = ("is locked", "locking protocol")
_DAMAGED = ("malformed", "file is encrypted", "no such table", "no such column", "no such index")
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NEVER = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = ("readonly", "authorization denied", "access permission denied")

#: Bytes of a path that SQLite takes, as it mostly is: 512 with what it calls its other files.
_LONGEST = 500

#: Looks at what comes and goes, each of which may be wrong about it.
_LOOKS = 3

#: Bytes that a transaction may well need.
_ROOM = 64 * 1024


class Full(BrokerUnavailable):
    """There is no room on the disk; nothing was changed."""


class Locked(BrokerUnavailable):
    """Another process kept the lock for too long; nothing was changed, and nothing is broken."""


def is_busy(error: sqlite3.Error) -> bool:
    """Whether somebody else holds the file's lock."""
    return any(words in str(error) for words in _BUSY)


def damaged(path: Path, what: str) -> TopologyError:
    """The error for a file that is not as this project left it."""
    return TopologyError(
        f"{path} is damaged ({what}); nothing more is read from it or written to it. Stop "
        f"everything that uses it, keep a copy of it with its -wal file, and save what can be "
        f"saved into a new file: docs/backends.md says how ('A damaged file')"
    )


def translate(error: Exception, path: Path) -> SynmanagerError:
    """Our error for one that sqlite3 or the system raised over ``path``."""
    text = str(error)
    if isinstance(error, (sqlite3.DataError, OverflowError, UnicodeError)):
        return InvalidJob(f"SQLite cannot store this: {text}")
    is_refused = isinstance(error, OSError) and error.errno in _REFUSED
    if is_refused or any(words in text for words in _READ_ONLY):
        return AccessRefused(f"{path} may not be written: {why_not_written(path) or text}")
    if isinstance(error, OSError) and error.errno in _NEVER:
        return TopologyError(f"{path} can be no file's path: {error.strerror}")
    if isinstance(error, OSError):
        return BrokerUnavailable(f"{path} cannot be used: {error.strerror or text}")
    if "not a database" in text:
        return TopologyError(
            f"{path} is not an SQLite database; nothing was changed. Choose another file"
        )
    if any(words in text for words in _DAMAGED):
        return damaged(path, text)
    if "unable to open" in text:
        return _cannot_open(path)
    if "is full" in text:
        return Full(f"{path}: the disk is full; what is in the file stays as it was")
    if "disk I/O error" in text and _is_limited(path, error):
        return Full(
            f"{path}: no more may be written, by a quota or a limit (ulimit -f) of this user's, as "
            "if the disk is full; what is in the file stays as it was"
        )
    if isinstance(error, sqlite3.Error) and is_busy(error):
        return Locked(f"{path} is locked by another process: {text}")
    name = getattr(error, "sqlite_errorname", "")
    return BrokerUnavailable(f"{path}: {text}{f' ({name})' if name else ''}")


def _is_limited(path: Path, error: Exception) -> bool:
    """Whether nothing more can be written here; SQLite says so of a full disk alone.

    What it could not write it has not committed: the mark of that is what it writes last.
    """
    if getattr(error, "sqlite_errorname", "SQLITE_IOERR_WRITE") != "SQLITE_IOERR_WRITE":
        return False
    ends = [0]
    for file in (path, path.with_name(f"{path.name}-wal")):
        with suppress(OSError):
            ends.append(file.stat().st_size)
    try:
        with TemporaryFile(dir=path.parent) as trial:
            os.pwrite(trial.fileno(), bytes(_ROOM), max(ends))
            os.fsync(trial.fileno())
    except OSError as refusal:
        return refusal.errno in _NO_ROOM
    return False


def _cannot_open(path: Path) -> SynmanagerError:
    reason = why_not_written(path)
    if reason:
        return AccessRefused(f"{path} may not be used: {reason}")
    if len(os.fsencode(path)) > _LONGEST:
        return TopologyError(f"{path} is too long for SQLite; choose a shorter path")
    return BrokerUnavailable(f"{path} cannot be opened")


def why_not_written(path: Path) -> str:
    """Which permission is missing, as far as can be seen."""
    for place in (path, path.parent):
        with suppress(OSError):
            if os.statvfs(place).f_flag & os.ST_RDONLY:
                return "its file system is mounted read-only"
    # Not by opening it: closing a descriptor of the file would drop the process's locks on it.
    if _is_refused(path):
        return "the file is read-only for this user"
    for suffix in ("-wal", "-shm"):
        beside = path.with_name(path.name + suffix)
        # Not by one look: whoever leaves last deletes it, and the next one makes it anew.
        if all(_is_refused(beside) for _ in range(_LOOKS)):
            return f"{beside.name}, which belongs to it, is read-only for this user"
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return f"this user may not write to the directory {path.parent}, as SQLite must"
    return ""


def _is_refused(path: Path) -> bool:
    return path.exists() and not os.access(path, os.R_OK | os.W_OK)
