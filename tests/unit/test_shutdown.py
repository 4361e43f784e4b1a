"""SIGTERM, SIGINT and ``stop()``: real signals to real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from grid import Grid, in_thread, until

import synmanager
from synmanager.shutdown import Shutdown

SOURCE = Path(synmanager.__file__).parents[1]

#: Seconds. No signal may take longer, whatever the machine is doing; most take milliseconds.
BOUND = 5.0

# Listens in the main thread; says what it does on its standard output, a line each.
PROGRAM = """
import signal, sys, threading, time
from synmanager import Worker, current_job, runner
from synmanager.train import TrainConsumerOperator, TrainProducerOperator

runner._SLICE = 0.05  # else a second
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it

def say(*words):
    print(*words, flush=True)

consumer = TrainConsumerOperator(url="memory")
consumer.connect()
other = TrainConsumerOperator(url="memory")
other.connect()
with TrainProducerOperator(url="memory") as producer:
    for run in range(3):
        producer.process(run=run)

def asked():  # whether the first signal has arrived
    return any(loop.requested for loop in consumer._runner._loops)

def finish_when_told(run):
    say("running", run)
    sys.stdin.readline()

def never_end(run):
    say("running", run)
    while not asked():
        time.sleep(0.005)
    say("asked")
    time.sleep(3600)

def never_let_go(run):
    say("running", run)
    while True:
        try:
            time.sleep(3600)
        except BaseException:
            say("not yet")

def be_quick(run):
    say("ran", run)

def attempt_and_stop(run):
    say("attempt", current_job().attempt)
    other.stop()

try:
    {body}
finally:
    say("ready", other.check_message_count())
"""


@contextmanager
def program(body: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Run :data:`PROGRAM` with this body; kill it if the test does not see it end."""
    program = PROGRAM.replace("{body}", textwrap.indent(body, "    ").strip())
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=SOURCE,
        env={**os.environ, **environ},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def answer(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str]) -> list[str]:
    """The rest of what a process says, once it has ended in bounded time."""
    began = time.monotonic()
    process.wait(60)
    assert time.monotonic() - began < BOUND
    assert process.stdout is not None
    return process.stdout.read().splitlines()


EXIT = {signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: -signal.SIGINT}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
class TestSignal:
    def test_a_running_job_finishes_within_the_grace_period(self, number: signal.Signals) -> None:
        with program("say('ended', consumer.listen_message(finish_when_told))") as process:
            assert read(process) == "running 0"
            process.send_signal(number)
            answer(process)
            assert end(process) == ["ended 1", "ready 2"]
            assert process.returncode == 0

    def test_after_the_grace_period_it_is_given_back_uncounted(
        self, number: signal.Signals
    ) -> None:
        body = """
try:
    consumer.listen_message(never_end)
except BaseException as error:
    say(type(error).__name__, other.check_message_count())
    other.listen_message(attempt_and_stop)
    raise
"""
        with program(body, SYNMANAGER_GRACE="0.1") as process:
            assert read(process) == "running 0"
            process.send_signal(number)
            name = "SystemExit" if number == signal.SIGTERM else "KeyboardInterrupt"
            assert end(process) == ["asked", f"{name} 3", "attempt 1", "ready 2"]
            assert process.returncode == EXIT[number]

    def test_a_second_one_leaves_at_once_and_gives_the_job_back(
        self, number: signal.Signals
    ) -> None:
        with program("consumer.listen_message(never_end)", SYNMANAGER_GRACE="3600") as process:
            assert read(process) == "running 0"
            process.send_signal(number)
            assert read(process) == "asked"
            process.send_signal(number)
            assert end(process) == ["ready 3"]
            assert process.returncode == EXIT[number]

    def test_while_idle_it_returns_promptly(self, number: signal.Signals) -> None:
        with program("say('ended', consumer.listen_message(be_quick))") as process:
            assert [read(process) for _ in range(3)] == ["ran 0", "ran 1", "ran 2"]
            process.send_signal(number)
            assert end(process) == ["ended 3", "ready 0"]
            assert process.returncode == 0

    def test_a_callback_that_does_not_let_go_is_ended_with_the_process(
        self, number: signal.Signals
    ) -> None:
        body = """
from synmanager import shutdown
shutdown.LAST_RESORT = 0.2
consumer.listen_message(never_let_go)
"""
        with program(body, SYNMANAGER_GRACE="0.1") as process:
            assert read(process) == "running 0"
            process.send_signal(number)
            assert end(process) == ["not yet"]
            assert process.returncode == 128 + number

    def test_a_worker_obeys_too(self, number: signal.Signals) -> None:
        body = """
worker = Worker({"train": finish_when_told}, url="memory")
say("ended", worker.run())
"""
        with program(body) as process:
            assert read(process) == "running 0"
            process.send_signal(number)
            answer(process)
            assert end(process) == ["ended 1", "ready 2"]

    def test_after_listening_the_signal_means_what_it_meant(self, number: signal.Signals) -> None:
        # The handler does not print: the signal may come while the program does.
        body = """
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append("mine"))
signal.signal(signal.SIGINT, lambda *_: heard.append("mine"))
consumer.listen_message(be_quick, max_jobs=1)
say("listened")
while not heard:
    time.sleep(0.005)
say(*heard)
"""
        with program(body) as process:
            assert [read(process) for _ in range(2)] == ["ran 0", "listened"]
            process.send_signal(number)
            assert end(process) == ["mine", "ready 2"]


def test_one_of_each_kind_are_two_signals() -> None:
    with program("consumer.listen_message(never_end)", SYNMANAGER_GRACE="3600") as process:
        assert read(process) == "running 0"
        process.send_signal(signal.SIGTERM)
        assert read(process) == "asked"
        process.send_signal(signal.SIGINT)
        assert end(process) == ["ready 3"]
        assert process.returncode == EXIT[signal.SIGINT]


def test_a_signal_ends_the_wait_for_a_broker_that_went_away() -> None:
    body = """
from synmanager.errors import BrokerUnavailable
def refuse():
    say("refused") if not asked() else None
    raise BrokerUnavailable("gone")
consumer._session.backend.open = refuse
consumer._session.backend._open = False
say("ended", consumer.listen_message(be_quick))
"""
    with program(body) as process:
        assert read(process) == "refused"
        process.send_signal(signal.SIGTERM)
        assert end(process)[-2:] == ["ended 0", "ready 3"]
        assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
class TestLoopInACallback:
    """The callback listens to ``other``, as one that waits for the outcome of a part does."""

    def test_a_signal_ends_the_inner_and_the_outer_loop(self, number: signal.Signals) -> None:
        body = """
def part(run):
    finish_when_told(run)

def whole(run):
    say("whole", run)
    say("inner", other.listen_message(part))

say("outer", consumer.listen_message(whole))
"""
        with program(body, SYNMANAGER_GRACE="3600") as process:
            assert [read(process) for _ in range(2)] == ["whole 0", "running 1"]
            process.send_signal(number)
            answer(process)
            assert end(process) == ["inner 1", "outer 1", "ready 1"]
            assert process.returncode == 0

    def test_a_second_one_leaves_both_at_once(self, number: signal.Signals) -> None:
        body = """
consumer.listen_message(lambda run: other.listen_message(never_end))
"""
        with program(body, SYNMANAGER_GRACE="3600") as process:
            assert read(process) == "running 1"
            process.send_signal(number)
            assert read(process) == "asked"
            process.send_signal(number)
            assert end(process) == ["ready 3"]
            assert process.returncode == EXIT[number]

    def test_after_the_grace_period_both_jobs_are_given_back(self, number: signal.Signals) -> None:
        # One push leads through both callbacks: a second would cut short what cleans up.
        body = """
def clean_up_slowly(run):
    try:
        never_end(run)
    finally:
        time.sleep(0.3)
        say("clean")

consumer.listen_message(lambda run: other.listen_message(clean_up_slowly))
"""
        with program(body, SYNMANAGER_GRACE="0.1") as process:
            assert read(process) == "running 1"
            process.send_signal(number)
            assert end(process) == ["asked", "clean", "ready 3"]
            assert process.returncode == EXIT[number]

    def test_one_that_begins_after_the_signal_takes_no_job(self, number: signal.Signals) -> None:
        body = """
def whole(run):
    finish_when_told(run)
    say("inner", other.listen_message(be_quick))

say("outer", consumer.listen_message(whole))
"""
        with program(body, SYNMANAGER_GRACE="3600") as process:
            assert read(process) == "running 0"
            process.send_signal(number)
            answer(process)
            assert end(process) == ["inner 0", "outer 1", "ready 2"]

    def test_one_that_was_stopped_does_not_take_the_signal_for_a_second(
        self, number: signal.Signals
    ) -> None:
        body = """
def part(run):
    other.stop()
    finish_when_told(run)

say("outer", consumer.listen_message(lambda run: other.listen_message(part)))
"""
        with program(body, SYNMANAGER_GRACE="3600") as process:
            assert read(process) == "running 1"
            process.send_signal(number)
            answer(process)
            assert end(process) == ["outer 1", "ready 1"]
            assert process.returncode == 0


# Works for longer than the grace period after the fork, and tells what became of its own job.
FORKS = """
import multiprocessing, os
fork = multiprocessing.get_context("fork")

def work(run):
    {body}
    say("asked" if asked() else "not asked")
    time.sleep(0.3)
    say("lost" if current_job().lease_lost else "kept")

say("ended", consumer.listen_message(work, max_jobs=1))
"""


def forks(body: str) -> str:
    return FORKS.replace("{body}", textwrap.indent(body, "    ").strip())


class TestFork:
    """A child that a callback forks, and the job of the callback."""

    END = ("not asked", "kept", "ended 1", "ready 2")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_means_to_a_child_what_it_meant_before(self, number: signal.Signals) -> None:
        body = f"""
child = os.fork()
if child == 0:
    try:
        say("child")
        time.sleep(60)
    except KeyboardInterrupt:
        os._exit(77)
    finally:
        os._exit(78)
sys.stdin.readline()
os.kill(child, {int(number)})
say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
        with program(forks(body), SYNMANAGER_GRACE="0.1") as process:
            assert read(process) == "child"
            answer(process)
            expected = 77 if number == signal.SIGINT else -number
            assert end(process) == [str(expected), *self.END]

    @pytest.mark.parametrize(
        "body",
        [
            """
child = fork.Process(target=time.sleep, args=(60,))
child.start()
child.terminate()
child.join()
say("done", child.exitcode)
""",
            """
pool = fork.Pool(2)
pool.apply_async(time.sleep, (60,))
pool.terminate()
pool.join()
say("done", -15)
""",
        ],
        ids=["Process", "Pool"],
    )
    def test_multiprocessing_can_terminate(self, body: str) -> None:
        with program(forks(body), SYNMANAGER_GRACE="0.1") as process:
            assert read(process) == "done -15"
            assert end(process) == list(self.END)

    def test_a_child_of_a_loop_in_a_callback_hears_signals_too(self) -> None:
        body = """
def part(run):
    child = fork.Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join()
    say("done", child.exitcode)
other.listen_message(part, max_jobs=1)
"""
        with program(forks(body), SYNMANAGER_GRACE="0.1") as process:
            assert read(process) == "done -15"
            assert end(process) == ["not asked", "kept", "ended 1", "ready 1"]

    def test_a_signal_that_comes_with_the_fork_is_not_lost(self) -> None:
        body = """
def killed():
    child = os.fork()
    if child == 0:
        time.sleep(5)
        os._exit(78)
    os.kill(child, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
say("done", {killed() for _ in range(100)})
"""
        with program(forks(body), SYNMANAGER_GRACE="0.1") as process:
            assert read(process) == "done {-15}"
            assert end(process) == list(self.END)

    def test_the_parent_hears_signals_again(self) -> None:
        body = """
os.waitpid(os.fork() or os._exit(0), 0)
say("blocked", *signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
        with program(forks(body), SYNMANAGER_GRACE="0.1") as process:
            assert read(process) == "blocked"
            assert end(process) == list(self.END)

    def test_a_handler_that_the_callback_set_stays(self) -> None:
        body = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child == 0:
    os._exit(signal.getsignal(signal.SIGTERM) is signal.SIG_IGN)
say("ignored", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
        with program(forks(body), SYNMANAGER_GRACE="0.1") as process:
            assert read(process) == "ignored 1"
            assert end(process) == list(self.END)

    def test_a_handler_that_calls_the_one_before_it_reaches_the_one_before_the_loop(self) -> None:
        body = """
before = signal.getsignal(signal.SIGTERM)
signal.signal(signal.SIGTERM, lambda *arguments: before(*arguments))
child = os.fork()
if child == 0:
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(78)
say("done", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
        with program(forks(body), SYNMANAGER_GRACE="0.1") as process:
            assert read(process) == "done -15"
            assert end(process) == list(self.END)

    def test_a_child_that_leaves_the_loop_keeps_its_handlers(self) -> None:
        body = """
import os
from synmanager.shutdown import Shutdown
with Shutdown(60, lambda: False, lambda: None):
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
if child == 0:
    os._exit(signal.getsignal(signal.SIGTERM) is signal.SIG_IGN)
say("kept", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
        with program(body) as process:
            assert end(process) == ["kept 1", "ready 3"]


class TestStop:
    def test_beyond_the_grace_period_the_job_is_given_back_and_its_outcome_dropped(
        self, grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SYNMANAGER_GRACE", "0.05")
        go_on = threading.Event()
        grid.put({})
        consumer = grid.consumer()
        client = grid.flaky(consumer)

        def work(**kwargs: Any) -> None:
            consumer.stop()
            assert go_on.wait(10)

        join = in_thread(consumer.listen_message, work)
        until(lambda: "nack" in client.calls)
        until(lambda: grid.count() == {"ready": 1})
        go_on.set()
        assert join() == 1
        assert "ack" not in client.calls
        assert grid.count() == {"ready": 1}

    def test_signals_are_left_alone_outside_the_main_thread(self, grid: Grid) -> None:
        before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        grid.put({})
        handlers: list[Any] = []
        join = in_thread(
            grid.consumer().listen_message,
            lambda **_: handlers.append(
                (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
            ),
            max_jobs=1,
        )
        join()
        assert handlers == [before]

    def test_nothing_is_left_behind(self, grid: Grid) -> None:
        consumer = grid.consumer()

        def descriptors() -> int:
            return len(list(Path("/proc/self/fd").iterdir()))

        before = descriptors()
        for _ in range(20):
            consumer.listen_message(lambda **_: None, idle_timeout=0)
        until(lambda: descriptors() <= before, "the pipes are closed")

        def watching() -> bool:
            return any(thread.name == "synmanager-shutdown" for thread in threading.enumerate())

        until(lambda: not watching(), "the threads have ended")

    def test_it_may_come_while_the_loop_ends(self) -> None:
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for _ in range(2000):
                with Shutdown(60, lambda: False, lambda: None) as shutdown:
                    join = in_thread(shutdown.request)
                join()
        finally:
            sys.setswitchinterval(before)

    def test_overdue_is_after_the_grace_period(self) -> None:
        with Shutdown(0.05, lambda: False, lambda: None) as shutdown:
            assert not shutdown.overdue
            shutdown.request()
            assert not shutdown.overdue
            until(lambda: shutdown.overdue)
