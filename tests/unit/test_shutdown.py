"""SIGTERM, SIGINT and ``stop()``: real signals to real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
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
from synmanager.engine.ear import Ear
from synmanager.engine.shutdown import Shutdown

SOURCE = Path(synmanager.__file__).parents[1]

#: Seconds. No signal may take longer, whatever the machine is doing; most take milliseconds, and
#: what goes wrong an hour.
BOUND = 20.0

# Listens in the main thread; says what it does on its standard output, a line each.
PROGRAM = """
import signal, sys, threading, time
from synmanager import Worker, current_job
from synmanager.backends import base
from synmanager.train import TrainConsumerOperator, TrainProducerOperator

base._SLICE = 0.05  # else a second
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

def sleep_on():
    # In naps: Python hears a signal that comes just before a sleep only after it.
    while True:
        time.sleep(0.005)

def finish_when_told(run):
    say("running", run)
    sys.stdin.readline()

def never_end(run):
    say("running", run)
    try:
        while not asked():
            time.sleep(0.005)
    finally:  # the grace may be over before this thread has noticed
        say("asked")
    sleep_on()

def never_let_go(run):
    begins = True
    while True:
        try:
            if begins:
                begins = False
                say("running", run)
            sleep_on()
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

    def test_it_is_said_what_is_waited_for_and_how_to_leave_now(
        self, number: signal.Signals, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with program("consumer.listen_message(never_end)", SYNMANAGER_GRACE="3600") as process:
            assert read(process) == "running 0"
            process.send_signal(number)
            assert read(process) == "asked"
            said = ""

            def has_said() -> bool:
                nonlocal said
                said += capfd.readouterr().err
                return "\n" in said

            until(has_said, "the first word")
            process.send_signal(number)
            assert end(process) == ["ready 3"]
        again = "Ctrl-C again" if number == signal.SIGINT else "a second SIGTERM"
        assert said.startswith(
            f"{number.name}: waiting for the running job, 3600 s at most; {again} leaves at once"
        )

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
from synmanager.engine import shutdown
shutdown.LAST_RESORT = 3.0
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


@pytest.mark.parametrize("error", ["PublishRefused('full')", "RuntimeError('a defect')"])
def test_the_last_resort_comes_although_the_job_cannot_be_given_back(error: str) -> None:
    body = f"""
from synmanager.engine import shutdown
from synmanager.errors import PublishRefused
shutdown.LAST_RESORT = 3.0
def refuse(*arguments, **options):
    raise {error}
consumer._session.backend.nack = refuse
consumer.listen_message(never_let_go)
"""
    with program(body, SYNMANAGER_GRACE="0.1") as process:
        assert read(process) == "running 0"
        process.send_signal(signal.SIGTERM)
        assert end(process) == ["not yet"]
        assert process.returncode == 128 + signal.SIGTERM


def test_a_job_that_cannot_be_given_back_may_leave_and_the_loop_ends() -> None:
    body = """
from synmanager.errors import PublishRefused
def refuse(*arguments, **options):
    raise PublishRefused("full")
consumer._session.backend.nack = refuse
consumer.listen_message(never_end)
"""
    with program(body, SYNMANAGER_GRACE="0.1") as process:
        assert read(process) == "running 0"
        process.send_signal(signal.SIGTERM)
        assert end(process) == ["asked", "ready 2"]
        assert process.returncode == EXIT[signal.SIGTERM]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_waits_for_a_broker_obeys_where_signals_are_ignored_by_default(
    number: signal.Signals,
) -> None:
    # As for process 1 of a container, which the kernel sends nothing that it has no handler for.
    body = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
from synmanager.errors import BrokerUnavailable
def refuse():
    if worker._shutdown is not None and not worker._shutdown.requested:
        say("refused")
    raise BrokerUnavailable("not there yet")
worker = Worker({"train": be_quick}, url="memory")
worker._session.backend.open = refuse
say("ended", worker.run())
say(signal.getsignal(signal.SIGTERM) is signal.SIG_IGN)
"""
    with program(body) as process:
        assert read(process) == "refused"
        process.send_signal(number)
        assert [word for word in end(process) if word != "refused"] == [
            "ended 0",
            "True",
            "ready 3",
        ]
        assert process.returncode == 0


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


# Calls native code that waits for ever, whatever signal comes: for a lock that is held already.
DEAF = """
import ctypes
from synmanager.engine import shutdown
shutdown._DEAF = 0.2
shutdown.LAST_RESORT = 0.2

native, lock = ctypes.CDLL(None), ctypes.create_string_buffer(256)

def never_return(run):
    say("running", run)
    native.pthread_mutex_lock(lock)
    native.pthread_mutex_lock(lock)

told = threading.Event()
def tell_when_asked():
    while not asked():
        time.sleep(0.005)
    say("asked")
    told.set()

give_back = consumer._session.backend.nack
def nack(delivery, **how):
    give_back(delivery, **how)
    say("given back", how, other.check_message_count())
consumer._session.backend.nack = nack
threading.Thread(target=tell_when_asked, daemon=True).start()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
class TestDeafMainThread:
    BACK = "given back {'count': False} 3"

    def test_a_job_in_native_code_is_given_back_uncounted(self, number: signal.Signals) -> None:
        body = DEAF + "consumer.listen_message(never_return)"
        with program(body, SYNMANAGER_GRACE="0.1") as process:
            assert read(process) == "running 0"
            process.send_signal(number)
            assert self.BACK in end(process)
            assert process.returncode == 128 + number

    def test_so_it_is_in_a_loop_in_a_callback(self, number: signal.Signals) -> None:
        body = DEAF + "other.listen_message(lambda run: consumer.listen_message(never_return))"
        with program(body, SYNMANAGER_GRACE="0.1") as process:
            assert read(process) == "running 1"
            process.send_signal(number)
            end(process)
            assert process.returncode == 128 + number

    def test_a_second_signal_cuts_the_grace_short(self, number: signal.Signals) -> None:
        body = DEAF + "consumer.listen_message(never_return)"
        with program(body, SYNMANAGER_GRACE="3600") as process:
            assert read(process) == "running 0"
            process.send_signal(number)
            assert read(process) == "asked"
            process.send_signal(number)
            assert end(process) == [self.BACK]
            assert process.returncode == 128 + number

    def test_a_callback_that_returns_in_time_has_finished(self, number: signal.Signals) -> None:
        # Its own signal is heard late, and is no second one.
        body = (
            DEAF
            + """
mutex = ctypes.create_string_buffer(256)
native.pthread_mutex_lock(mutex)

def let_go():
    told.wait()
    time.sleep(0.05)
    native.pthread_mutex_unlock(mutex)

def wait_in_native_code(run):
    threading.Thread(target=let_go, daemon=True).start()
    say("running", run)
    native.pthread_mutex_lock(mutex)
    for _ in range(1000):
        pass  # where Python runs handlers

say("ended", consumer.listen_message(wait_in_native_code))
"""
        )
        with program(body, SYNMANAGER_GRACE="3600") as process:
            assert read(process) == "running 0"
            process.send_signal(number)
            assert sorted(end(process)) == ["asked", "ended 1", "ready 2"]
            assert process.returncode == 0

    def test_a_signal_that_interrupts_another_thread_is_heard(self, number: signal.Signals) -> None:
        body = (
            DEAF
            + f"""
def be_interrupted():
    sys.stdin.readline()
    signal.pthread_kill(threading.get_ident(), {int(number)})

shutdown.LAST_RESORT = 5.0

def sleep(run):
    threading.Thread(target=be_interrupted, daemon=True).start()
    say("running", run)
    time.sleep(3600)

consumer.listen_message(sleep)
"""
        )
        with program(body, SYNMANAGER_GRACE="0.1") as process:
            assert read(process) == "running 0"
            answer(process)
            assert end(process)[-1] == "ready 3"
            assert process.returncode == EXIT[number]

    def test_somebody_else_s_handler_is_left_alone(self, number: signal.Signals) -> None:
        body = (
            DEAF
            + f"""
def mine(run):
    signal.signal({int(number)}, lambda *_: None)
    say("running", run)
    sys.stdin.readline()
    time.sleep(1)
    say("asked" if asked() else "not asked")
    consumer.stop()

say("ended", consumer.listen_message(mine))
"""
        )
        with program(body) as process:
            assert read(process) == "running 0"
            process.send_signal(number)
            answer(process)
            assert "not asked" in end(process)


class TestEar:
    @pytest.fixture
    def ear(self) -> Iterator[Ear]:
        made = Ear.open()
        assert made is not None
        yield made
        made.forked()  # as a thread that reads would close it
        assert signal.set_wakeup_fd(-1) == -1

    def test_hears_what_comes(self, ear: Ear) -> None:
        before = signal.signal(signal.SIGUSR1, lambda *_: None)
        try:
            join = in_thread(ear.wait)
            signal.raise_signal(signal.SIGUSR1)
            assert join()
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert ear.take() == bytes([signal.SIGUSR1])
        assert ear.take() == b""
        ear.close()
        assert ear.take() == b""
        assert not in_thread(ear.wait)()

    def test_listens_again_after_asyncio_did(self, ear: Ear) -> None:
        async def with_a_handler() -> None:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGUSR1, print)
            assert not ear.listen()
            loop.remove_signal_handler(signal.SIGUSR1)

        asyncio.run(with_a_handler())
        assert ear.listen()
        assert signal.set_wakeup_fd(-1) == ear._write

    def test_leaves_who_listens_alone(self) -> None:
        theirs, other = socket.socketpair()
        with theirs, other:
            theirs.setblocking(False)
            signal.set_wakeup_fd(theirs.fileno())
            try:
                assert Ear.open() is None
                with Shutdown(60, lambda: False, lambda: None, lambda: None) as shutdown:
                    shutdown.look()
            finally:
                assert signal.set_wakeup_fd(-1) == theirs.fileno()

    def test_touches_nothing_that_has_got_its_numbers(self, ear: Ear, tmp_path: Path) -> None:
        file = os.open(tmp_path / "theirs", os.O_CREAT | os.O_RDWR)
        for end in (ear._read, ear._write):  # what a daemon does, and opens files then
            os.dup2(file, end)
        assert ear.take() == b""
        assert not ear.listen()
        ear.close()
        os.fstat(ear._read)
        os.fstat(ear._write)
        for end in (file, ear._read, ear._write):
            os.close(end)
        assert (tmp_path / "theirs").read_bytes() == b""

    def test_its_numbers_are_out_of_the_way(self, ear: Ear) -> None:
        assert min(ear._read, ear._write) >= 900

    def test_without_room_there_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full() -> tuple[int, int]:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(os, "pipe", full)
        assert Ear.open() is None
        with Shutdown(60, lambda: False, lambda: None, lambda: None):
            pass


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
ended = 0
while not ended:  # Python drops what is raised in a finaliser: then it is asked again
    os.kill(child, {int(number)})
    time.sleep(0.1)
    ended, status = os.waitpid(child, os.WNOHANG)
say(os.waitstatus_to_exitcode(status))
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
from synmanager.engine.ear import Ear
from synmanager.engine.shutdown import Shutdown
with Shutdown(60, lambda: False, lambda: None, lambda: None):
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
                with Shutdown(60, lambda: False, lambda: None, lambda: None) as shutdown:
                    join = in_thread(shutdown.request)
                join()
        finally:
            sys.setswitchinterval(before)

    def test_overdue_is_after_the_grace_period(self) -> None:
        for grace in (3600.0, 0.05):
            with Shutdown(grace, lambda: False, lambda: None, lambda: None) as shutdown:
                assert not shutdown.overdue
                shutdown.request()
                if grace > 60:
                    assert not shutdown.overdue
                else:
                    until(lambda shutdown=shutdown: shutdown.overdue)  # type: ignore[misc]
