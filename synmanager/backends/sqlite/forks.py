"""SQLite's connections must not cross a fork, not even to be closed.

What SQLite knows of its locks is a table of the process, and a copied one lies; and a lock of its
own, held by a thread that is not there any more, is held for good. So a fork waits until no
connection is left, and a child into which one came all the same is told so.

A connection is noted before SQLite makes it and until SQLite has closed it: whatever a thread is in
the middle of, it is known. And each side notes itself before it looks for the other one, so that no
lock is needed, which an interruption could leave locked.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

from synmanager.errors import Unsupported
from synmanager.stacks import is_held_here

__all__ = ["check", "enter", "is_near", "leaver", "watch"]

#: Seconds that a fork waits for connections, that a connection waits for forks, and that a child
#: waits for its first one.
_PATIENCE = 5.0

#: Seconds between two looks; and how many of them count at most, whatever the clock says: a machine
#: that was paused has waited for nothing.
_PAUSE, _LONGEST_PAUSE = 0.0002, 0.05

_HELD = (
    "this process was forked while another thread was in the middle of SQLite, after which SQLite "
    "cannot be used here; fork before other threads use it, or start the process by 'spawn'"
)


class _Idler(Protocol):
    def forget_idle(self) -> None: ...


class _Noted(Protocol):
    has_entered: bool
    is_inherited: bool


#: The connections that SQLite knows of or is about to, by their identifiers. Not a WeakSet: the
#: garbage collector takes things out of it before it closes them.
_open: dict[int, weakref.ref[_Noted]] = {}

#: Whoever may keep connections for later.
_keepers: weakref.WeakSet[_Idler] = weakref.WeakSet()

#: The threads that fork, and the time until which others wait for each. What an interrupted one
#: leaves here costs nobody more than that.
_forking: dict[int, float] = {}

#: What came over a fork, kept from ever being closed. None was just being closed by the collector.
_inherited: list[_Noted | None] = []

#: Whether this is a child in which SQLite has not been used yet.
_is_new = False


def watch(keeper: _Idler) -> None:
    """Have somebody's idle connections closed before each fork. It is not kept alive."""
    _keepers.add(keeper)


def enter(connection: _Noted) -> None:
    """Note a connection that is about to be made, once no other thread forks.

    It lasts until its :func:`leaver` is called.
    """
    reference = weakref.ref(connection)
    me = threading.get_ident()
    deadline = time.monotonic() + _PATIENCE
    while True:
        # Not noted meanwhile: a fork would hardly find a moment in which none of many is.
        while is_near(but=me) and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        _open[id(connection)] = reference
        if not is_near(but=me) or time.monotonic() > deadline:
            connection.has_entered = True
            return
        _open.pop(id(connection), None)


def leaver(connection: _Noted) -> Callable[[], object]:
    """What takes note that a connection is closed, without needing this module's names.

    An interpreter that ends has forgotten them when it collects the last connections.
    """
    return partial(_open.pop, id(connection), None)


def is_near(*, but: int = 0) -> bool:
    """Whether a thread is forking, so that no connection may be kept.

    Args:
        but: a thread that does not count.
    """
    if not _forking:  # nearly always
        return False
    now = time.monotonic()
    return any(thread != but and now < end for thread, end in _forking.copy().items())


def check() -> None:
    """Make sure that no fork has spoiled SQLite for this process.

    Raises:
        Unsupported: it did; also where it was not our connection that a thread was busy with.
    """
    global _is_new
    if _inherited:
        raise Unsupported(_HELD)
    if not _is_new:
        return
    trial = threading.Thread(target=_try, name="synmanager-sqlite-trial", daemon=True)
    trial.start()
    for _ in range(round(_PATIENCE / _LONGEST_PAUSE)):
        trial.join(_LONGEST_PAUSE)
        if not trial.is_alive():
            break
    else:
        raise Unsupported(_HELD)
    _is_new = False


def _try() -> None:
    """Get the locks that SQLite has for all of a process: those of its memory and of files."""
    sqlite3.connect(os.devnull).close()


def _all_keepers() -> tuple[_Idler, ...]:
    while True:
        with suppress(RuntimeError):  # another thread was adding one
            return tuple(_keepers)


def _before_fork() -> None:
    me = threading.get_ident()
    waited, last = 0.0, time.monotonic()
    while waited < _PATIENCE:
        _forking[me] = last + _PATIENCE
        for keeper in _all_keepers():
            keeper.forget_idle()
        if not _open:
            return
        left = [each for each in (ref() for ref in _open.copy().values()) if each is not None]
        if any(is_held_here("connection", each) for each in left):
            return  # this thread was interrupted in the middle of it, and would wait for itself
        time.sleep(_PAUSE)
        now = time.monotonic()
        waited, last = waited + min(now - last, _LONGEST_PAUSE), now


def _after_fork_in_parent() -> None:
    _forking.pop(threading.get_ident(), None)
    for key, ref in _open.copy().items():
        if ref() is None:  # the collector was interrupted in its work: no other fork waits for it
            _open.pop(key, None)


def _after_fork_in_child() -> None:
    global _is_new
    _is_new = True
    _forking.clear()
    for ref in _open.copy().values():
        connection = ref()
        if connection is not None:
            if not connection.has_entered:  # its thread had yet to see whether another one forks
                continue
            connection.is_inherited = True
        _inherited.append(connection)
    _open.clear()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
