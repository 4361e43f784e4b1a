"""The file: where it may lie, whose it is, and how a connection to it is set up."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from contextlib import suppress
from pathlib import Path

from synmanager.backends.sqlite import schema
from synmanager.backends.sqlite.faults import damaged, why_not_written
from synmanager.errors import AccessRefused, TopologyError

__all__ = [
    "LOCK",
    "bells_of",
    "check_place",
    "connect",
    "examine",
    "give_away",
    "identity",
    "lock_of",
    "make",
    "make_bells",
    "open_up",
]

#: Bytes: files up to this size are looked through when they are opened, in some milliseconds.
_LOOKED_THROUGH = 4 * 1024 * 1024

#: Hidden, as no bell that rings is.
LOCK = ".lock"

_MOUNTS = "/proc/mounts"

#: Where several kernels may see the file: SQLite's locks and its shared memory end at one.
_NETWORK = re.compile(
    "9p|afs|beegfs|ceph|cifs|coda|davfs|glusterfs|gfs2?|gpfs|ibrix|kafs|lustre|ncpfs|nfs[0-9]?"
    "|ocfs2|orangefs|panfs|prl_fs|pvfs2|smb[0-9]?|smbfs|vboxsf|virtiofs|vmhgfs|fuse[.].*"
)

#: File systems in user space that lie on a disk of this machine; of the others nobody knows.
_LOCAL = re.compile("fuse[.](encfs|fuse-overlayfs|gocryptfs|ntfs-3g)")

#: The log goes back into the file four times as often as by itself, which costs a job a fortieth of
#: its time: a disk that was full needs as much room before anything goes on.
_PRAGMAS = """
PRAGMA synchronous = FULL
PRAGMA fullfsync = ON
PRAGMA checkpoint_fullfsync = ON
PRAGMA cell_size_check = ON
PRAGMA cache_size = -8192
PRAGMA trusted_schema = OFF
PRAGMA journal_size_limit = 67108864
PRAGMA wal_autocheckpoint = 256
""".strip().splitlines()


def bells_of(path: Path) -> Path:
    """The directory of the file's doorbells."""
    return path.with_name(f"{path.name}-bells")


def lock_of(path: Path) -> Path:
    """The file that writers take turns by. It lies with the bells, and is empty."""
    return bells_of(path) / LOCK


def check_place(path: Path) -> None:
    """Make sure that the file may be where it is said to be.

    Raises:
        TopologyError: on a network's file system, or in no directory.
        AccessRefused: this user may not write to it.
        OSError: what the system says.
    """
    kind = _file_system(path.parent)
    if _NETWORK.fullmatch(kind) and not _LOCAL.fullmatch(kind):
        raise TopologyError(
            f"{path} lies on a file system of type {kind}, which other machines may share: "
            "SQLite would damage it there. Choose a local disk, or a broker such as RabbitMQ"
        )
    if not path.parent.is_dir():
        raise TopologyError(
            f"there is no directory {path.parent} for {path.name}; make it, and remember that "
            "a path after sqlite:/// begins in the working directory and one after sqlite://// "
            "at the root"
        )
    if path.exists() and not path.is_file():
        what = "directory" if path.is_dir() else "device, a pipe or a socket"
        raise TopologyError(f"{path} is a {what}, not a file")
    # SQLite would only say so at the first job; and what it leaves beside the file for who may only
    # read is that user's, and keeps out who may write.
    reason = why_not_written(path) if path.exists() else ""
    if reason:
        raise AccessRefused(f"{path} may not be written: {reason}")


def make_bells(path: Path) -> Path:
    """Make the directory of the doorbells, for whoever may write to the file."""
    directory = bells_of(path)
    directory.mkdir(exist_ok=True)
    if not lock_of(path).exists():
        lock_of(path).touch()
    with suppress(FileNotFoundError):  # the file comes later
        status = path.stat()
        mode = status.st_mode & 0o666
        open_up(directory, mode | (mode & 0o444) >> 2, status)
        open_up(lock_of(path), mode, status)
        for suffix in ("-wal", "-shm"):  # of who is at work since before others were let in
            open_up(f"{path}{suffix}", mode, status)
    return directory


def open_up(place: Path | str, mode: int, like: os.stat_result | None = None) -> None:
    """Let those use what lies beside the file who may use the file, if this user has a say in it.

    Args:
        mode: its permissions; that new files in a directory are of the directory's group stays.
        like: whose it shall be.
    """
    with suppress(OSError):
        now = os.lstat(place)
        if stat.S_ISLNK(now.st_mode):
            return  # we make none: it may lead to what is root's alone
        if now.st_mode & 0o777 != mode:
            os.chmod(place, now.st_mode & 0o7000 | mode)
        if like is not None and (now.st_uid, now.st_gid) != (like.st_uid, like.st_gid):
            give_away(place, like)


def give_away(place: Path | str, like: os.stat_result) -> None:
    """Let something be theirs whose something else is, as far as this user may do that."""
    for owner in (like.st_uid, -1):
        with suppress(OSError):
            os.chown(place, owner, like.st_gid, follow_symlinks=False)
            return


def identity(path: Path | str) -> tuple[int, int] | None:
    """Which file this is at the moment, if any."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def make(path: Path) -> None:
    """Where there is no file, make an empty one, and delete what belonged to a deleted one.

    Not by SQLite, which makes none that a group may write to, whatever the umask. The caller holds
    the writers' lock: nobody else is making it.
    """
    if identity(path) is None:
        for suffix in ("-wal", "-shm", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        with suppress(FileExistsError):  # another program was faster
            # It is new: no lock of this process is on it that closing it would drop.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def connect(path: Path) -> sqlite3.Connection:
    """Connect to a file that has been examined."""
    db = sqlite3.connect(str(path), timeout=0, isolation_level=None, check_same_thread=False)
    db.text_factory = _text
    try:
        for pragma in _PRAGMAS:
            db.execute(pragma)
    except BaseException:
        db.close()
        raise
    return db


def examine(db: sqlite3.Connection, path: Path) -> None:
    """Make sure that the file is ours and sound; make the tables in a new one.

    The caller holds the writers' lock.

    Raises:
        TopologyError: it is another program's, a newer synmanager's, or damaged.
    """
    owner, version = _owner(db)
    if (owner, version) == (0, 0) and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
        _write_ahead(db, path)
        db.execute("BEGIN IMMEDIATE")
        schema.create(db)
        db.execute("COMMIT")
        return
    if owner != schema.APPLICATION_ID:
        raise TopologyError(
            f"{path} is the database of another program; nothing was changed. Choose another file"
        )
    if version > schema.VERSION:
        raise TopologyError(
            f"{path} was made by a newer synmanager (schema {version}, this one knows "
            f"{schema.VERSION}); nothing was changed. Update synmanager here, or choose another "
            "file"
        )
    if version < 1:
        raise damaged(path, f"schema {version}")
    if path.stat().st_size <= _LOOKED_THROUGH:
        _look_through(db, path)
    # What .recover has saved is without it, or somebody switched it off; then who reads would keep
    # others from writing.
    _write_ahead(db, path)


def _write_ahead(db: sqlite3.Connection, path: Path) -> None:
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise TopologyError(f"{path}: its file system cannot carry a write-ahead log")


def _text(raw: bytes) -> str | bytes:
    """A text, or what somebody took for one: it must not keep its row from being read."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _owner(db: sqlite3.Connection) -> tuple[int, int]:
    (owner,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return owner, version


def _look_through(db: sqlite3.Connection, path: Path) -> None:
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise damaged(path, " ".join(found.split()))
    jobs, placed = db.execute(
        "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM ready) "
        "+ (SELECT count(*) FROM delayed) + (SELECT count(*) FROM leased)"
    ).fetchone()
    if jobs != placed:
        raise damaged(path, f"{jobs} jobs, of which {placed} are ready, delayed or leased")


def _file_system(directory: Path) -> str:
    """The type of the file system that a directory lies on, where the system tells."""
    try:
        mounts = Path(_MOUNTS).read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    real = Path(os.path.realpath(directory))
    found, deepest = "", -1
    for mount in mounts:
        _, where, kind, *_ = mount.split(" ")
        where = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), where)
        place = Path(where)
        if (place == real or place in real.parents) and len(place.parts) >= deepest:
            found, deepest = kind, len(place.parts)
    return found
