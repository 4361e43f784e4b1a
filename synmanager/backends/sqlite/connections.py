"""Connections to the file, one for each call that is under way, and the transactions on them.

Not one connection under a lock: a lock that a signal handler's exception orphans hangs everybody
for good, a connection that is lost on the way is closed by the garbage collector.
"""

from __future__ import annotations

import fcntl
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import NoReturn, TypeVar

from synmanager.backends.sqlite import file, forks
from synmanager.backends.sqlite.faults import Full, Locked, is_busy, translate
from synmanager.errors import BrokerUnavailable, SynmanagerError, Unsupported
from synmanager.interrupts import is_from_handler
from synmanager.stacks import is_held_here

__all__ = ["CommitInDoubt", "Connections"]

T = TypeVar("T")

#: Seconds between two tries to get a lock that another has; grows from the first to the last.
_SOONEST, _LATEST = 0.0002, 0.01


class CommitInDoubt(BrokerUnavailable):
    """The commit failed, and may be in the file or not."""


class _Connection:
    """SQLite's connection, and the lock that our writers take before SQLite's own.

    Taking turns by it keeps a checkpoint and another's commit apart. SQLite up to 3.51.2 has a
    race there that may damage the file (https://sqlite.org/wal.html#walresetbug).
    """

    def __init__(self, path: Path) -> None:
        self.has_entered = False
        self.is_inherited = False
        self.ref = weakref.ref(self)
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._lock: FileIO | None = None
        self._leave = forks.leaver(self)
        # Before it locks anything: here it may wait for a fork, which waits for all that is open,
        # and those may wait for the lock.
        forks.enter(self)
        try:
            self._lock = FileIO(file.lock_of(path))
        except BaseException:
            self._leave()
            raise
        _locks.add(self._lock)

    @property
    def db(self) -> sqlite3.Connection:
        assert self._db is not None
        return self._db

    def connect(self) -> None:
        self._db = file.connect(self._path)

    def try_lock(self) -> bool:
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(self) -> None:
        assert self._lock is not None
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def make_room(self) -> None:
        """Roll back, and have the log begin anew, in the room that it has: jobs can be settled."""
        with suppress(sqlite3.Error):
            self.db.execute("ROLLBACK")
        with suppress(sqlite3.Error):
            self.db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Roll back, disconnect and unlock. Idempotent."""
        if self._db is not None:
            self._db.close()
        self._leave()
        if self._lock is not None:
            self._lock.close()

    def __del__(self) -> None:
        # Lost on the way. SQLite's own object is in a cycle, and would keep its locks until that is
        # collected; where a signal's handler raises in here, both close themselves all the same.
        # No globals: this is also how a program ends.
        if self._db is not None and not self.is_inherited:
            self._db.close()
        self._leave()
        if self._lock is not None:
            self._lock.close()


class Connections:
    """The connections of one client.

    Args:
        path: absolute, and no link.
        timeout: seconds that a call waits for a lock.
        name: a path that led there, and must go on to; it may be a link, or lead over some.

    Attributes:
        closed: for good.
        ready: whether calls may go on; False once something was wrong.
    """

    def __init__(self, path: Path, timeout: float, name: Path) -> None:
        self._path = path
        self._name = str(name)
        self._timeout = timeout
        self._idle: list[_Connection] = []
        self._file: tuple[int, int] | None = None
        self.closed = False
        self.ready = False
        forks.watch(self)

    def open(self, *, mkdir: bool = False) -> None:
        """Connect for the first time: examine the file, or make it.

        Args:
            mkdir: make the directory for it as well.
        """
        connection = None
        deadline = time.monotonic() + self._timeout
        try:
            if mkdir:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.check_place(self._path)
            file.make_bells(self._path)
            connection = _Connection(self._path)
            self._lock(connection, deadline)
            file.make(self._path)
            self._unless_busy(connection.connect, deadline)
            self._unless_busy(partial(file.examine, connection.db, self._path), deadline)
            file.make_bells(self._path)
            self._file = file.identity(self._path)
            connection.unlock()
        except BaseException as error:
            self._fail(error, connection)
        self._give_back(connection)
        self.ready = True

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do some work that changes nothing, on one state of the file.

        Raises:
            SynmanagerError: what ``work`` raises, or what ``faults`` makes of SQLite's errors.
        """
        connection = None
        deadline = time.monotonic() + self._timeout

        def read(db: sqlite3.Connection) -> T:
            if db.in_transaction:
                db.execute("ROLLBACK")
            db.execute("BEGIN")
            result = work(db)
            db.execute("COMMIT")
            return result

        try:
            connection = self._take(deadline)
            result = self._unless_busy(partial(read, connection.db), deadline)
        except BaseException as error:
            self._fail(error, connection)
        self._give_back(connection)
        return result

    def write(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        patience: float | None = None,
        last: bool = False,
    ) -> T:
        """Do some work in a transaction that is on the disk when this returns.

        Args:
            patience: seconds to wait for a lock; by default as long as any call.
            last: it may come after :meth:`close` has begun.

        Raises:
            CommitInDoubt: perhaps everything is done; after any other error nothing is.
            SynmanagerError: as above.
        """
        deadline = time.monotonic() + (self._timeout if patience is None else patience)
        me = (threading.get_ident(), self._name)
        if me in _writing and _is_interrupted(me):
            raise Unsupported(
                "a signal handler or a finaliser called the SQLite backend while its own thread "
                "was in the middle of a transaction; let it set a flag instead"
            )
        connection = None
        committing = False
        try:
            connection = self._take(deadline, last=last)
            self._lock(connection, deadline, me, last=last)
            db = connection.db
            self._unless_busy(partial(db.execute, "BEGIN IMMEDIATE"), deadline, last=last)
            if self.closed and not last:
                raise BrokerUnavailable(f"{self._path} was closed")
            result = work(db)
            committing = True
            db.execute("COMMIT")
            connection.unlock()
            if file.identity(self._name) != self._file:
                raise self._gone()
        except BaseException as error:
            _writing.pop(me, None)
            self._fail(error, connection, committing=committing)
        _writing.pop(me, None)
        self._give_back(connection)
        return result

    def close(self, farewell: Callable[[sqlite3.Connection], T], patience: float) -> T | None:
        """Disconnect; no other transaction comes after ``farewell``, or even begins.

        Args:
            farewell: the last work; given up where it does not get the lock in ``patience``
                seconds.
        """
        self.closed = True
        result = None
        with suppress(SynmanagerError):
            result = self.write(farewell, patience=patience, last=True)
        self.drop()
        return result

    def drop(self) -> None:
        """Disconnect as if the process had died."""
        self.closed = True
        self.forget_idle()

    def forget_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _take(self, deadline: float, *, last: bool = False) -> _Connection:
        if not self.ready or (self.closed and not last):
            raise BrokerUnavailable(f"{self._path} is not open")
        if file.identity(self._name) != self._file:
            raise self._gone()
        try:
            return self._idle.pop()
        except IndexError:
            connection = _Connection(self._path)
            try:
                self._unless_busy(connection.connect, deadline, last=last)
            except BaseException:
                connection.close()
                raise
            return connection

    def _give_back(self, connection: _Connection) -> None:
        if self.closed or forks.is_near():
            connection.close()
            return
        self._idle.append(connection)
        if self.closed:  # in between
            self.forget_idle()

    def _gone(self) -> BrokerUnavailable:
        return BrokerUnavailable(f"{self._path} was deleted or replaced while in use")

    def _lock(
        self,
        connection: _Connection,
        deadline: float,
        me: tuple[int, str] | None = None,
        *,
        last: bool = False,
    ) -> None:
        if not self._try_lock(connection, me):  # seldom
            self._try(partial(self._try_lock, connection, me), deadline, last=last)

    def _try_lock(self, connection: _Connection, me: tuple[int, str] | None) -> bool:
        if me is not None:
            _writing[me] = connection.ref  # before it is: a signal may come at any time
        if connection.try_lock():
            return True
        if me is not None:
            _writing.pop(me, None)
        return False

    def _unless_busy(self, step: Callable[[], T], deadline: float, *, last: bool = False) -> T:
        """Do a step again where another client was in its way.

        Not only a transaction is: who connects after all others have left recovers the log, and
        who leaves last clears it away, each with nobody beside it.
        """
        try:
            return step()  # nearly always
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
        done: list[T] = []

        def do() -> bool:
            try:
                done.append(step())
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise
                return False
            return True

        self._try(do, deadline, last=last)
        return done[0]

    def _try(self, get: Callable[[], bool], deadline: float, *, last: bool) -> None:
        pause = _SOONEST
        while not get():
            if self.closed and not last:
                raise BrokerUnavailable(f"{self._path} was closed")
            left = deadline - time.monotonic()
            if left <= 0:
                raise Locked(
                    f"{self._path} is locked: another process is writing to it, or is frozen"
                )
            time.sleep(min(left, pause * random.uniform(0.5, 1.0)))
            pause = min(pause * 1.5, _LATEST)

    def _fail(
        self, error: BaseException, connection: _Connection | None, *, committing: bool = False
    ) -> NoReturn:
        """Give up a connection, and raise what its error means."""
        ours = error
        if isinstance(error, (sqlite3.Error, OSError, OverflowError, UnicodeError)) and not (
            isinstance(error, SynmanagerError) or is_from_handler(error)
        ):
            ours = translate(error, self._path)
            if self._file is not None and file.identity(self._name) != self._file:
                ours = self._gone()
        if connection is not None:
            if isinstance(ours, Full):
                connection.make_room()
            connection.close()
        if isinstance(ours, BrokerUnavailable) and not isinstance(ours, Locked):
            self.ready = False
            self.forget_idle()
            if committing and not isinstance(ours, Full):
                ours = CommitInDoubt(str(ours))
        if ours is error:
            raise error
        raise ours from error


#: What is in the middle of a transaction, by thread and file. References by hand: a
#: WeakValueDictionary costs every transaction a twentieth of its time.
_writing: dict[tuple[int, str], weakref.ref[_Connection]] = {}


def _is_interrupted(me: tuple[int, str]) -> bool:
    """Whether this thread is in the middle of a transaction on the file, further up its stack."""
    reference = _writing.get(me)
    found = reference() if reference is not None else None
    if found is None:
        return False
    if is_held_here("connection", found):
        return True
    _writing.pop(me, None)  # no: it was interrupted so badly that it could not even end it
    found.close()
    return False


#: The writers' locks, taken or not, that this process has open.
_locks: weakref.WeakSet[FileIO] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    _writing.clear()
    # What the parent locks by them, now or later, would stay locked for as long as a child has them
    # open as well, even if the parent dies.
    for lock in tuple(_locks):
        lock.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
