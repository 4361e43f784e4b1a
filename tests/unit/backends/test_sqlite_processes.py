"""Doorbells, leases, threads, signals and forks, in and between processes."""

from __future__ import annotations

import _sqlite3
import ctypes
import gc
import os
import signal
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlite_file import SPEC, Jobs, publish, take
from threads import in_thread, until

from synmanager.backends import Address
from synmanager.backends.sqlite import SQLiteBackend, file, forks
from synmanager.backends.sqlite import backend as driver
from synmanager.backends.sqlite.file import bells_of
from synmanager.errors import BrokerUnavailable, LeaseLost, Unsupported

#: Takes what a signal handler shall call, and in how many seconds.
Alarm = Callable[[Callable[[], object], float], None]


def bells(jobs: Jobs) -> list[str]:
    """The bells beside the file that somebody hears."""
    heard = []
    for name in os.listdir(bells_of(jobs.path)):
        if name[0] == ".":  # the lock, and a bell that does not hang yet
            continue
        with suppress(OSError):
            os.close(os.open(bells_of(jobs.path) / name, os.O_WRONLY | os.O_NONBLOCK))
            heard.append(name)
    return heard


def in_child(work: Callable[[], None]) -> int:
    """Run in a fork; return its exit status: 0, or 1 for whatever it raised.

    One that stands still is killed by its alarm, within a minute.
    """
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        try:
            work()
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def is_refused_in_child(client: SQLiteBackend) -> bool:
    """Whether a fork made now is told that SQLite cannot be used in it."""

    def child() -> None:
        client.abandon()
        with pytest.raises(Unsupported, match="forked"):
            client.open()

    return in_child(child) == 0


class TestBells:
    def test_a_waiting_client_costs_next_to_nothing_and_wakes_up_at_once(
        self, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "_GLANCE", 60.0)  # so that nothing but the bell wakes it
        client, other = jobs.open(), jobs.open()
        client._longest_pause = 60.0
        waits: list[float] = []
        busy: list[float] = []  # of this thread, whatever others of this process do
        for _ in range(5):
            taken: list[float] = []

            def wait(taken: list[float] = taken) -> None:
                before = time.thread_time()
                client.ack(take(client, 60))
                busy.append(time.thread_time() - before)
                taken.append(time.monotonic())

            thread = threading.Thread(target=wait)
            thread.start()
            while not bells(jobs):
                time.sleep(0.001)
            time.sleep(0.3)
            began = time.monotonic()
            publish(other)
            thread.join(30)
            waits.append(taken[0] - began)
        assert min(busy) < 0.03  # in one of them Python may collect its garbage
        assert min(waits) < 0.05
        assert bells(jobs) == []

    def test_only_those_are_rung_for_who_wait_for_the_queue(self, jobs: Jobs) -> None:
        client = jobs.open()
        assert client._bells is not None
        ours, others = client._bells.hang([1, 12]), client._bells.hang([2])
        assert ours is not None
        assert others is not None
        client._bells.ring([12])
        began = time.monotonic()
        ours.wait(60)
        assert time.monotonic() - began < 30
        began = time.monotonic()
        others.wait(0.05)
        assert time.monotonic() - began > 0.04
        client._bells.ring([2])
        others.wait(60)
        assert time.monotonic() - began < 30
        for bell in (ours, others):
            client._bells.take_down(bell)

    def test_a_bell_is_heard_that_hangs_since_others_were_looked_for(
        self, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = jobs.open()
        assert client._bells is not None
        listed: list[str] = []
        listdir = os.listdir

        def note(path: str) -> list[str]:
            listed.append(path)
            return listdir(path)

        monkeypatch.setattr(os, "listdir", note)
        deadline = time.monotonic() + 20
        known = False  # once the directory has not changed for a while
        while not known:
            assert time.monotonic() < deadline
            listed.clear()
            client._bells.ring([1])
            known = not listed
        for _ in range(2):  # the second in the same tick of the directory's clock
            bell = client._bells.hang([1])
            assert bell is not None
            client._bells.ring([1])
            began = time.monotonic()
            bell.wait(60)
            assert time.monotonic() - began < 30
            client._bells.take_down(bell)

    def test_the_bell_of_a_killed_follower_is_taken_down(self, jobs: Jobs) -> None:
        client = jobs.open()
        with jobs.killed_in("replay('events', wait=60)"):
            until(lambda: bells(jobs))
            (name,) = bells(jobs)
        client.record("events", [b"{}"])
        assert not (bells_of(jobs.path) / name).exists()

    def test_without_bells_a_client_looks(
        self, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client, other = jobs.open(), jobs.open()
        monkeypatch.setattr(os, "mkfifo", lambda path: os.listdir("/nowhere"))
        timer = threading.Timer(0.1, publish, (other,))
        timer.start()
        began = time.monotonic()
        take(client, 60)
        assert time.monotonic() - began < driver._LOOK - 1
        timer.join()

    def test_what_rings_no_bell_is_seen_at_a_glance(self, jobs: Jobs) -> None:
        client = jobs.open()
        client._longest_pause = 60.0
        taken: list[bytes] = []
        thread = threading.Thread(target=lambda: taken.append(take(client, 60).message.body))
        thread.start()
        deadline = time.monotonic() + 20
        while not bells(jobs) and time.monotonic() < deadline:
            time.sleep(0.01)
        jobs.execute("INSERT INTO inbox (queue, body) VALUES ('train', '{\"lr\": 1}')")
        thread.join(20)
        assert taken == [b'{"lr": 1}']

    def test_while_nothing_is_written_no_lock_is_taken(
        self, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "_GLANCE", 0.01)
        client = jobs.open()
        look, looks = client._look, []

        def note(*args: Any, **waited: Any) -> Any:
            looks.append(args)
            return look(*args, **waited)

        monkeypatch.setattr(client, "_look", note)
        assert client.receive([SPEC.name], 0.5) is None
        assert len(looks) <= 4  # at first, once the bell hangs, and at the end; by the clock 50

    def test_a_bell_that_is_rung_without_end_is_no_harm(self, jobs: Jobs) -> None:
        client = jobs.open()
        assert client._bells is not None
        bell = client._bells.hang([1])
        assert bell is not None
        for _ in range(70_000):
            bell.ring()
        client._bells.ring([1])
        bell.wait(1)
        began = time.monotonic()
        bell.wait(0.05)
        assert time.monotonic() - began >= 0.04
        client._bells.take_down(bell)


class TestLeases:
    def test_a_machine_that_was_paused_takes_no_job_from_a_living_worker(self, jobs: Jobs) -> None:
        worker, idle = jobs.open(lease=20), jobs.open(lease=20)
        publish(worker)
        held = take(worker)
        idle.receive([SPEC.name], 0)
        jobs.clocks.skipped += 3600  # for both of them
        looked = threading.Thread(target=lambda: idle.receive([SPEC.name], 0))
        looked.start()
        while not bells(jobs):  # it sees a lease that has run out, and waits
            time.sleep(0.001)
        worker.renew(held)  # as it does within a third of its lease
        looked.join(30)
        worker.ack(held)

    def test_none_means_that_there_is_nothing_to_take_over(self, jobs: Jobs) -> None:
        worker = jobs.open(lease=1)
        publish(worker)
        take(worker)
        jobs.clocks.skipped += 3
        newcomer = jobs.open()
        again = newcomer.receive([SPEC.name], 0)
        assert again is not None
        assert again.attempt == 2

    def test_after_a_reboot_all_leases_are_void(self, jobs: Jobs) -> None:
        worker = jobs.open(lease=86_400)
        publish(worker)
        held = take(worker)
        jobs.clocks.skipped = -86_400 * 365  # the clock begins anew
        again = take(jobs.open(), 0)
        assert again.attempt == 2
        with pytest.raises(LeaseLost):
            worker.ack(held)

    def test_a_wall_clock_that_jumps_takes_no_lease(
        self, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        worker, idle = jobs.open(), jobs.open()
        publish(worker)
        held = take(worker)
        for jump in (3600, -3600):
            monkeypatch.setattr(jobs.clocks, "wall", lambda jump=jump: time.time() + jump)
            assert idle.receive([SPEC.name], 0.05) is None
        worker.ack(held)


class TestSignals:
    @pytest.fixture
    def alarm(self) -> Iterator[Alarm]:
        """Have a function called by a signal, in the middle of whatever is done."""
        previous = signal.getsignal(signal.SIGALRM)

        def ring(call: Callable[[], object], seconds: float) -> None:
            signal.signal(signal.SIGALRM, lambda number, frame: call())
            signal.setitimer(signal.ITIMER_REAL, seconds)

        yield ring
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)

    def test_a_handler_that_calls_in_works_or_is_told_at_once(
        self, jobs: Jobs, alarm: Alarm
    ) -> None:
        client, second = jobs.open(timeout=20), jobs.open(timeout=20)
        refusals: list[str] = []
        seconds: list[float] = []
        worked = 0

        def call() -> None:
            nonlocal worked
            for backend in (client, second):
                began = time.monotonic()
                try:
                    publish(backend)
                    worked += 1
                except Unsupported as error:
                    refusals.append(str(error))
                seconds.append(time.monotonic() - began)

        rounds = 300
        for number in range(rounds):
            alarm(call, 0.00001 + number / rounds * 0.001)
            publish(client)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert worked
        assert max(seconds) < 5
        assert all("signal handler" in refusal for refusal in refusals)
        assert client.count(SPEC.name).ready == rounds + worked

    @pytest.mark.usefixtures("unraisable_is_dropped")
    def test_what_a_handler_raises_passes_through_and_nothing_is_left_behind(
        self, jobs: Jobs, alarm: Alarm
    ) -> None:
        client = jobs.open(timeout=5)

        def call() -> None:
            raise TimeoutError("the caller's own")

        confirmed = 0
        interruptions: list[str] = []
        rounds = 300
        for number in range(rounds):
            try:
                alarm(call, 0.00001 + number / rounds * 0.002)
                publish(client)
                confirmed += 1
                held = client.receive([SPEC.name], 0)
                if held is not None:
                    client.nack(held, count=False)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except TimeoutError as error:
                interruptions.append(str(error))
        assert set(interruptions) == {"the caller's own"}
        assert client.is_open
        publish(client)
        client.receive([SPEC.name], 0)  # gives back what an interrupted one took
        counts = client.count(SPEC.name)
        assert counts.leased is not None
        left = counts.ready + counts.leased
        assert confirmed + 1 <= left <= confirmed + len(interruptions) + 1
        another = threading.Thread(target=jobs.open, daemon=True)
        another.start()
        another.join(30)
        assert not another.is_alive()
        gc.collect()  # what was lost on the way closes itself now, not in the next test


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks beside threads
class TestForks:
    def test_while_other_threads_are_busy(self, jobs: Jobs) -> None:
        client = jobs.open()
        stopped = threading.Event()
        sent = [0] * 4

        def work(number: int) -> None:
            while not stopped.is_set():
                publish(client)
                sent[number] += 1

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()

        def child() -> None:
            client.abandon()
            client.open()
            for _ in range(5):
                publish(client)
            client.close()

        statuses = [in_child(child) for _ in range(5)]
        stopped.set()
        for thread in threads:
            thread.join(10)
        assert statuses == [0] * 5
        assert client.count(SPEC.name).ready == sum(sent) + 25
        client.close()
        assert jobs.execute("PRAGMA integrity_check") == [("ok",)]

    def test_a_child_outlives_its_parent_and_everybody_else(self, jobs: Jobs) -> None:
        """What SQLite believes of its locks must be the child's own."""
        client = jobs.open()
        publish(client)
        go, ready = os.pipe()
        done, finished = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                client.abandon()
                client.open()
                publish(client)
                os.write(finished, b"1")
                os.read(go, 1)
                publish(client)  # all others have closed: is the log still the file's?
                os._exit(0)
            except BaseException:
                os._exit(1)
        os.read(done, 1)
        client.close()
        other = jobs.open()
        other.close()
        os.write(ready, b"1")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        for end in (go, ready, done, finished):
            os.close(end)
        assert jobs.open().count(SPEC.name).ready == 3

    def test_the_leases_of_the_parent_stay_its_own(self, jobs: Jobs) -> None:
        client = jobs.open()
        publish(client)
        held = take(client)

        def child() -> None:
            client.abandon()
            client.open()
            with pytest.raises(LeaseLost):
                client.ack(held)
            client.close()

        assert in_child(child) == 0
        client.renew(held)
        client.ack(held)

    def test_a_child_of_a_transaction_is_refused(self, jobs: Jobs) -> None:
        client = jobs.open()
        connection = client._connections
        assert connection is not None

        began = time.monotonic()
        assert connection.write(lambda db: is_refused_in_child(client))
        assert connection.read(lambda db: is_refused_in_child(client))
        assert time.monotonic() - began < forks._PATIENCE  # nobody waits for what waits for them
        publish(client)

    def test_who_opens_the_file_waits_for_a_fork_without_the_writers_lock(
        self, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The fork waits for those who have a connection, and they for the lock."""
        client, other = jobs.open(timeout=10), jobs.client()
        monkeypatch.setattr(forks, "_PATIENCE", 60)
        monkeypatch.setitem(forks._forking, -1, time.monotonic() + 60)
        reached = threading.Event()
        enter = forks.enter

        def note(connection: Any) -> None:
            reached.set()
            enter(connection)

        monkeypatch.setattr(forks, "enter", note)
        join = in_thread(other.open)
        assert reached.wait(60)
        publish(client)
        forks._forking.clear()
        join()
        assert take(other).attempt == 1

    def test_a_child_of_a_moment_in_which_another_thread_looks_for_forks_is_not_refused(
        self, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(forks, "_PATIENCE", 0.2)
        client, other = jobs.open(), jobs.client()
        reached, go = threading.Event(), threading.Event()
        asked: list[Any] = []
        is_near = forks.is_near

        def stand(**but: Any) -> bool:
            asked.append(but)
            if len(asked) == 2:  # now it is noted
                reached.set()
                go.wait(60)
            return is_near(**but)

        monkeypatch.setattr(forks, "is_near", stand)
        join = in_thread(other.open)
        assert reached.wait(60)

        def child() -> None:
            monkeypatch.undo()
            client.abandon()
            client.open()

        assert in_child(child) == 0
        go.set()
        join()

    def test_a_fork_while_another_thread_makes_a_client_waits_all_the_same(
        self, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[Any] = []

        class Keeper:
            def forget_idle(self) -> None: ...

        class Growing(weakref.WeakSet[Any]):
            def __iter__(self) -> Iterator[Any]:
                for each in super().__iter__():
                    yield each
                    if not made:
                        made.append(Keeper())
                        self.add(made[0])

        client = jobs.open()
        publish(client)
        monkeypatch.setattr(forks, "_keepers", Growing(forks._keepers))

        def child() -> None:
            client.abandon()
            client.open()

        assert in_child(child) == 0
        assert made

    def test_whatever_the_collector_lets_in_is_no_error(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Before CPython 3.12 it may begin at any step of C's, and other threads go on in it."""
        monkeypatch.setattr(forks, "_forking", {-1: 0.0})
        left = 100

        def let_in(phase: str, _: Any) -> None:
            nonlocal left
            if phase == "start" and left:
                left -= 1
                forks._forking[left] = 0.0

        before = gc.get_threshold()
        gc.callbacks.append(let_in)
        gc.set_threshold(1)
        try:
            near = [forks.is_near() for _ in range(20)]
        finally:
            gc.set_threshold(*before)
            gc.callbacks.remove(let_in)
        assert not any(near)

    def test_a_child_of_a_transaction_keeps_nobody_locked_out(self, jobs: Jobs) -> None:
        client, other = jobs.open(), jobs.open(timeout=10)
        connection = client._connections
        assert connection is not None
        ends, over = os.pipe()
        children = []

        def work(db: sqlite3.Connection) -> None:
            children.append(os.fork())
            if children == [0]:
                os.close(over)
                os.read(ends, 1)  # until its parent is done, whatever comes of that
                os._exit(0)
            raise LookupError

        with pytest.raises(LookupError):
            connection.write(work)
        try:
            publish(other)
        finally:
            os.close(over)
            os.close(ends)
            os.waitpid(children[0], 0)

    def test_a_child_of_a_moment_in_which_another_thread_connects_is_refused(
        self, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(forks, "_PATIENCE", 0.2)
        client, other = jobs.open(), jobs.client()
        reached, go = threading.Event(), threading.Event()
        connect = file.connect

        def stand(path: Path) -> sqlite3.Connection:
            if threading.current_thread() is thread:
                reached.set()
                go.wait(60)
            return connect(path)

        monkeypatch.setattr(file, "connect", stand)
        thread = threading.Thread(target=other.open)
        thread.start()
        assert reached.wait(60)

        assert is_refused_in_child(client)
        go.set()
        thread.join(60)
        publish(client)
        assert take(other).attempt == 1

    @pytest.mark.usefixtures("unraisable_is_dropped")
    def test_a_child_of_a_moment_in_which_the_collector_closes_is_refused(
        self, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the collector closes, in any thread, no weak reference finds any more."""
        monkeypatch.setattr(forks, "_PATIENCE", 0.2)
        client = jobs.open()
        publish(client)
        connection = client._connections
        assert connection is not None
        (lost,) = connection._idle
        connection._idle.clear()
        reached, go = threading.Event(), threading.Event()

        class Slow:
            def close(self, db: sqlite3.Connection = lost.db) -> None:
                reached.set()
                go.wait(60)
                db.close()

        lost._db = Slow()  # type: ignore[assignment]
        lost.cycle = lost  # type: ignore[attr-defined]
        del lost
        thread = threading.Thread(target=gc.collect)
        thread.start()
        assert reached.wait(60)

        assert is_refused_in_child(client)
        go.set()
        thread.join(60)
        assert not forks._open
        monkeypatch.undo()  # a child that is not refused may take its time
        assert in_child(lambda: jobs.open().close()) == 0

    def test_a_machine_that_was_paused_has_waited_for_nothing(
        self, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = jobs.open()
        connection = client._connections
        assert connection is not None
        reached, go = threading.Event(), threading.Event()

        def stand(db: sqlite3.Connection) -> None:
            reached.set()
            go.wait(60)

        thread = threading.Thread(target=connection.read, args=(stand,))
        thread.start()
        assert reached.wait(60)
        skipped = 0.0

        def pause(seconds: float) -> None:
            nonlocal skipped
            skipped = 3600.0
            go.set()
            time.sleep(seconds)

        clock = SimpleNamespace(monotonic=lambda: time.monotonic() + skipped, sleep=pause)
        monkeypatch.setattr(forks, "time", clock)

        def child() -> None:
            client.abandon()
            client.open()
            client.close()

        assert in_child(child) == 0
        thread.join(60)

    def test_a_fork_that_was_never_over_holds_nobody_up_for_long(
        self, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(forks._forking, -1, time.monotonic() - 0.01)
        client = jobs.open()
        publish(client)
        assert client._connections is not None
        assert client._connections._idle

    def test_a_child_of_a_moment_in_which_others_are_in_sqlite_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, jobs: Jobs
    ) -> None:
        """Its own locks, which a thread of the caller's own has, are held for good in a child."""
        library = ctypes.CDLL(_sqlite3.__file__)
        library.sqlite3_mutex_alloc.restype = ctypes.c_void_p
        of_memory = ctypes.c_void_p(library.sqlite3_mutex_alloc(3))  # SQLITE_MUTEX_STATIC_MEM
        client = jobs.client()
        held, go = threading.Event(), threading.Event()

        def hold() -> None:
            library.sqlite3_mutex_enter(of_memory)
            held.set()
            go.wait(60)
            library.sqlite3_mutex_leave(of_memory)

        thread = threading.Thread(target=hold)
        thread.start()
        assert held.wait(60)

        monkeypatch.setattr(forks, "_PATIENCE", 0.2)
        assert is_refused_in_child(client)
        go.set()
        thread.join(60)

    def test_a_daemon_that_closes_all_files(self, jobs: Jobs) -> None:
        client = jobs.open()

        def daemon() -> None:
            if os.fork():
                os._exit(0)
            os.closerange(3, 256)
            client.abandon()
            client.open()
            publish(client)
            client.close()

        in_child(daemon)
        assert take(client, 10).attempt == 1


def test_a_call_in_a_closed_client_in_the_middle_of_others(jobs: Jobs) -> None:
    client = jobs.open()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while True:
                publish(client)
                held = client.receive([SPEC.name], 0)
                if held is not None:
                    client.ack(held)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    client.close()
    for thread in threads:
        thread.join(10)
    assert [type(error) for error in errors] == [BrokerUnavailable] * 8
    assert jobs.open().count(SPEC.name).leased == 0
    gc.collect()
    assert len(forks._open) == 1  # the last one's


def test_a_backend_is_gone_with_its_last_user(jobs: Jobs) -> None:
    gc.collect()  # what earlier tests have left
    before = len(forks._open)
    client = SQLiteBackend(Address("sqlite", path=str(jobs.path)))
    client.open()
    del client
    assert len(forks._open) == before
