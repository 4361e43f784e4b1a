"""Whom a bell beside SQLite's file wakes: one, whoever else waits, yet for each job somebody."""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlite_file import SPEC, Jobs, publish, take
from threads import in_thread, until

from synmanager.backends import Delivery, QueueSpec
from synmanager.backends.sqlite import SQLiteBackend, bells
from synmanager.backends.sqlite import backend as driver
from synmanager.backends.sqlite.bells import Bell, Bells
from synmanager.backends.sqlite.file import bells_of
from synmanager.errors import BrokerUnavailable
from synmanager.message import Message

OTHER = QueueSpec("evaluate", SPEC.exchange, "evaluate-key")

#: A pipe that several hear wakes one of them where the kernel can do that; else it wakes them all,
#: of whom one goes on.
exclusive = pytest.mark.skipif(
    not hasattr(select, "EPOLLEXCLUSIVE"), reason="the kernel of this system wakes all of them"
)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often waiting clients did something."""
    counter: Counter[str] = Counter()

    def count(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def note(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            finally:
                counter[name] += 1

        monkeypatch.setattr(owner, name, note)

    count(SQLiteBackend, "_look")
    count(SQLiteBackend, "_peek")
    return counter


class Crowd:
    """Workers that wait, each with a client of its own, and are woken by nothing but a bell."""

    def __init__(self, jobs: Jobs, counted: Counter[str]) -> None:
        self._jobs = jobs
        self._counted = counted
        self._threads: list[threading.Thread] = []
        self.found: list[Delivery | None] = []

    def add(self, workers: int, *queues: str) -> None:
        """More of them, which sleep when this returns."""
        for _ in range(workers):
            client = self._jobs.open()
            client.declare(OTHER)
            client._longest_pause = 60.0
            before = self._counted["_peek"]

            def wait(client: SQLiteBackend = client) -> None:
                with suppress(BrokerUnavailable):  # closed, at the end of the test
                    self.found.append(client.receive(queues or (SPEC.name,), 60.0))

            self._threads.append(threading.Thread(target=wait))
            self._threads[-1].start()
            until(lambda before=before: self._counted["_peek"] > before)  # type: ignore[misc]
        self._counted.clear()

    def times_awake(self) -> dict[int, int]:
        """How often each of those who still wait has gone to sleep."""
        found = {}
        for thread in self._threads:
            with suppress(OSError):  # it has ended
                status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
                _, _, count = status.partition("\nvoluntary_ctxt_switches:")
                found[thread.native_id or 0] = int(count.split()[0])
        return found

    def is_asleep(self) -> bool:
        before = self.times_awake()
        time.sleep(0.1)
        return self.times_awake() == before

    def all_find(self) -> None:
        """Wait until each has a job."""
        for thread in self._threads:
            thread.join(20)
        assert None not in self.found
        assert len(self.found) == len(self._threads)


@pytest.fixture
def crowd(jobs: Jobs, counted: Counter[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Crowd]:
    monkeypatch.setattr(driver, "_GLANCE", 60.0)
    made = Crowd(jobs, counted)
    yield made
    jobs.close()  # which wakes those who still wait
    for thread in made._threads:
        thread.join(20)


@contextmanager
def waiting_process(jobs: Jobs) -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for a job. Nothing else hears the queue's bell when it begins."""
    with jobs.killed_in("receive(['train'], 600)") as process:
        until(lambda: is_heard(jobs))
        yield process


def pipe_of(jobs: Jobs, queue: int = 1) -> Path:
    return bells_of(jobs.path) / f"queue-{queue}-"


def is_heard(jobs: Jobs) -> bool:
    with suppress(OSError):
        os.close(os.open(pipe_of(jobs), os.O_WRONLY | os.O_NONBLOCK))
        return True
    return False


def bells_of_client(client: SQLiteBackend) -> Bells:
    assert client._bells is not None
    return client._bells


def hang(client: SQLiteBackend, *queues: int) -> Bell:
    bell = bells_of_client(client).hang(queues)
    assert bell is not None
    return bell


def test_a_job_wakes_one_of_many(jobs: Jobs, crowd: Crowd, counted: Counter[str]) -> None:
    client = jobs.open()
    crowd.add(16)
    for number in range(1, 17):
        publish(client)
        until(lambda number=number: len(crowd.found) == number)  # type: ignore[misc]
    crowd.all_find()
    assert counted["_look"] == 16


@exclusive
def test_the_others_sleep_on(jobs: Jobs, crowd: Crowd) -> None:
    client = jobs.open()
    crowd.add(16)
    until(crowd.is_asleep)
    before = crowd.times_awake()
    for number in range(1, 9):
        publish(client)
        until(lambda number=number: len(crowd.found) == number)  # type: ignore[misc]
    until(crowd.is_asleep)
    slept = crowd.times_awake().keys()
    assert len(slept) == 8
    woken = sum(times - before[thread] for thread, times in crowd.times_awake().items())
    assert woken < 16  # and if all were, 64 or more


def test_a_batch_wakes_as_many_as_it_has_jobs(
    jobs: Jobs, crowd: Crowd, counted: Counter[str]
) -> None:
    client = jobs.open()
    crowd.add(12)
    publish(client, *[b"{}"] * 8)
    until(lambda: len(crowd.found) == 8)
    assert counted["_look"] <= 9
    publish(client, *[b"{}"] * 4)
    crowd.all_find()


def test_delayed_jobs_that_are_due_at_once_find_somebody_each(jobs: Jobs, crowd: Crowd) -> None:
    client = jobs.open()
    publish(client, *[b"{}"] * 4, delay=1000.0)
    crowd.add(4)
    jobs.clocks.skipped += 1001.0
    bells_of_client(client).ring([1])  # one looks at the clock
    crowd.all_find()


def test_those_who_wait_for_another_queue_sleep_on(
    jobs: Jobs, crowd: Crowd, counted: Counter[str]
) -> None:
    client = jobs.open()
    crowd.add(2, OTHER.name)
    crowd.add(1)
    publish(client)
    until(lambda: crowd.found)
    assert counted["_look"] == 1
    for _ in range(2):
        client.publish(SPEC.exchange.name, OTHER.routing_key, [Message(b"{}")])
    crowd.all_find()


@exclusive
def test_one_that_is_frozen_is_passed_over(jobs: Jobs, crowd: Crowd) -> None:
    client = jobs.open()
    with waiting_process(jobs) as process:
        os.kill(process.pid, signal.SIGSTOP)
        crowd.add(1)
        publish(client)
        crowd.all_find()


def test_one_that_was_killed_is_passed_over(jobs: Jobs, crowd: Crowd) -> None:
    client = jobs.open()
    with waiting_process(jobs):
        pass
    publish(client)
    take(client)
    assert pipe_of(jobs).exists()
    crowd.add(1)
    publish(client)
    crowd.all_find()


def test_who_leaves_without_a_look_wakes_the_next(jobs: Jobs) -> None:
    client = jobs.open()
    first, second = hang(client, 1), hang(client, 1)
    bells_of_client(client).ring([1])
    assert first.wait(20)
    assert not second.wait(0)
    bells_of_client(client).take_down(first)
    assert second.wait(20)
    second.heard.clear()
    bells_of_client(client).take_down(second)


def test_who_is_called_off_while_he_is_woken_wakes_the_next(jobs: Jobs) -> None:
    client, leaving = jobs.open(), jobs.open()
    staying = hang(client, 1)
    bells_of_client(client).ring([1])
    assert leaving.await_job([SPEC.name], 60.0, called_off=lambda: True) is None
    assert staying.wait(20)
    staying.heard.clear()
    bells_of_client(client).take_down(staying)


def test_whom_a_signal_tears_out_of_the_wait_wakes_the_next(jobs: Jobs) -> None:
    client = jobs.open()
    first, second = hang(client, 1), hang(client, 1)

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    def wait() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        first.wait(60)

    previous = signal.signal(signal.SIGALRM, leave)
    try:
        with pytest.raises(KeyboardInterrupt):
            wait()
    finally:
        signal.signal(signal.SIGALRM, previous)
    bells_of_client(client).take_down(first)
    assert second.wait(20)
    second.heard.clear()
    bells_of_client(client).take_down(second)


def test_who_was_woken_for_one_queue_and_takes_from_another_wakes_the_next(
    jobs: Jobs, crowd: Crowd
) -> None:
    client = jobs.open()
    crowd.add(1, OTHER.name, SPEC.name)
    crowd.add(1)
    for queue in (SPEC.name, OTHER.name):  # who ring for nobody
        jobs.execute("INSERT INTO inbox (queue, body) VALUES (?, '{}')", queue)
    bells_of_client(client).ring([1])
    until(lambda: crowd.found)
    bells_of_client(client).ring([2])
    crowd.all_find()
    assert {each.queue for each in crowd.found if each} == {SPEC.name, OTHER.name}


def test_where_all_are_woken_one_goes_on(
    jobs: Jobs, crowd: Crowd, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(select, "epoll", raising=False)
    client = jobs.open()
    crowd.add(6)
    for number in range(1, 7):
        publish(client)
        until(lambda number=number: len(crowd.found) == number)  # type: ignore[misc]
    crowd.all_find()
    assert counted["_look"] == 6


def test_what_others_write_takes_no_lock(
    jobs: Jobs, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_GLANCE", 0.01)
    client, waiting = jobs.open(), jobs.open()
    join = in_thread(lambda: take(waiting, 60))
    until(lambda: counted["_peek"])
    for _ in range(5):
        before = counted["_peek"]
        client.record("events", [b"{}"])
        until(lambda before=before: counted["_peek"] > before)  # type: ignore[misc]
    assert counted["_look"] == 1
    publish(client)
    join()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks beside threads
def test_a_fork_of_who_waits_keeps_no_job_from_others(jobs: Jobs, crowd: Crowd) -> None:
    client = jobs.open()
    crowd.add(1)
    go, end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        os.read(go, 1)
        os._exit(0)
    try:
        crowd.add(3)
        for _ in range(4):
            publish(client)
        crowd.all_find()
    finally:
        os.close(end)
        os.close(go)
        os.waitpid(child, 0)


class TestOlderVersions:
    """They hang up a pipe each, ring every pipe with the queue's number, and remove the unheard."""

    def test_they_are_rung_as_well(self, jobs: Jobs, crowd: Crowd) -> None:
        client = jobs.open()
        pipes = [bells_of(jobs.path) / f"{number:016x}-{'1-' * number}" for number in (1, 2)]
        with ExitStack() as stack:
            ends = []
            for pipe in pipes:
                os.mkfifo(pipe)
                ends.append(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))
                stack.callback(os.close, ends[-1])
            crowd.add(1)
            publish(client)
            crowd.all_find()
            assert [os.read(end, 10) for end in ends] == [b"!", b"!"]
        publish(client)
        assert not any(pipe.exists() for pipe in pipes)

    def test_they_ring_one_of_ours(self, jobs: Jobs, crowd: Crowd, counted: Counter[str]) -> None:
        client = jobs.open()
        crowd.add(2)
        jobs.execute("INSERT INTO inbox (queue, body) VALUES ('train', '{}')")
        names = [name for name in os.listdir(bells_of(jobs.path)) if "-1-" in name]
        for name in names:
            end = os.open(bells_of(jobs.path) / name, os.O_WRONLY | os.O_NONBLOCK)
            os.write(end, b"!")
            os.close(end)
        until(lambda: crowd.found)
        assert counted["_look"] == 1
        publish(client)
        crowd.all_find()

    def test_they_may_remove_the_pipe(self, jobs: Jobs, crowd: Crowd) -> None:
        client = jobs.open()
        for _ in range(2):
            crowd.add(1)
            publish(client)
            crowd.all_find()
            pipe_of(jobs).unlink()

    def test_they_may_remove_it_while_it_is_heard(self, jobs: Jobs, counted: Counter[str]) -> None:
        client, waiting = jobs.open(), jobs.open()
        join = in_thread(lambda: take(waiting, 60))
        until(lambda: counted["_peek"])
        pipe_of(jobs).unlink()
        publish(client)
        join()


def test_a_bell_is_open_to_whom_the_file_is_open(jobs: Jobs) -> None:
    def modes() -> set[int]:
        return {stat.S_IMODE(path.stat().st_mode) for path in (jobs.path, pipe_of(jobs))}

    jobs.open().receive([SPEC.name], 0.01)
    assert len(modes()) == 1
    for mode in (0o660, 0o600):
        jobs.path.chmod(mode)
        jobs.open()
        assert modes() == {mode}


def test_a_bell_that_cannot_be_opened_is_done_without(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, waiting = jobs.open(), jobs.open()
    tried: list[Any] = []

    def refuse(*args: Any) -> Any:
        tried.append(args)
        raise PermissionError

    monkeypatch.setattr(os, "mkfifo", refuse)
    join = in_thread(lambda: take(waiting, 60))
    until(lambda: tried)
    publish(client)
    join()


def test_who_may_not_hear_the_bell_of_another_user_has_one_of_his_own(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = jobs.open()

    def refuse(*_: Any) -> int:
        raise PermissionError

    monkeypatch.setattr(bells, "_open_shared", refuse)
    bell = hang(client, 1, 2)
    monkeypatch.undo()
    for queue in (1, 2):
        bells_of_client(client).ring([queue])
        assert bell.wait(60)
    bells_of_client(client).ring([12])
    assert not bell.wait(0)
    bells_of_client(client).take_down(bell)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give something to another user")
def test_a_bell_is_theirs_whose_file_it_is(jobs: Jobs) -> None:
    jobs.open()
    for place in (jobs.path, bells_of(jobs.path)):
        os.chown(place, 1234, 5678)
    jobs.open().receive([SPEC.name], 0.01)
    owner = pipe_of(jobs).stat()
    assert (owner.st_uid, owner.st_gid) == (1234, 5678)


@exclusive
def test_a_kernel_that_cannot_wake_one_alone_wakes_all(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = jobs.open()
    no_flag = select.EPOLLEXCLUSIVE | select.EPOLLONESHOT  # refused together by every kernel
    monkeypatch.setattr(select, "EPOLLEXCLUSIVE", no_flag)
    some = [hang(client, 1) for _ in range(2)]
    bells_of_client(client).ring([1])
    assert [bell.wait(0) for bell in some] == [True, False]  # there is one thing to read
    for bell in some:
        bells_of_client(client).take_down(bell)
