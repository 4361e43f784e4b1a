"""What a callback does never ends the loop, nor is it taken for what it is not."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from types import FrameType
from typing import Any

import pytest
from grid import Bench, FlakyBackend, Grid, in_thread, until

from synmanager import Reject, Retry, Worker, current_job
from synmanager.backends import Delivery
from synmanager.engine import kept, shutdown
from synmanager.engine.kept import Kept
from synmanager.engine.outcomes import LONGEST_REASON, LONGEST_TRACEBACK, End, Outcome
from synmanager.message import DEFAULT_MAX_BYTES, Message
from synmanager.phases import WORK_PHASES


def raising(error: BaseException | type[BaseException]) -> Callable[..., Any]:
    def fail(**kwargs: Any) -> None:
        raise error

    return fail


def attempts(grid: Grid) -> int:
    """As which attempt the only job comes next."""
    grid.clock.advance(3600)
    delivery = grid.client().receive(["train"], 0)
    assert delivery is not None
    return delivery.attempt


class TestLeaving:
    """Only a stop that somebody asked for costs no attempt."""

    @pytest.mark.parametrize(
        "error", [SystemExit(2), GeneratorExit(), asyncio.CancelledError()], ids=repr
    )
    def test_one_that_always_leaves_blocks_nobody(self, error: BaseException, grid: Grid) -> None:
        grid.put({"run": 0})
        grid.put(*({"run": run} for run in range(1, 10)))
        seen: list[int] = []
        tries: list[Any] = []

        def work(run: int) -> None:
            if run:
                seen.append(run)
            else:
                tries.append(current_job().attempt)
                raise error

        for _ in range(20):  # as a supervisor that starts the worker again and again
            Worker({"train": work}, url=grid.url).run(burst=True)
            grid.clock.advance(3600)
        assert seen == list(range(1, 10))
        assert tries == [1, 2, 3, 4, 5]
        ((body, reason, count),) = grid.dead()
        assert (body, count) == (b'{"run": 0}', 5)
        assert reason.startswith(type(error).__name__)

    @pytest.mark.parametrize("how", ["poll", "generate"])
    def test_elsewhere_too(self, how: str, grid: Grid) -> None:
        grid.put({})
        consumer = grid.consumer()
        if how == "poll":
            assert consumer.poll_message(raising(SystemExit(2))) is None
        else:
            delivery = grid.flaky(consumer).receive(["train"], 0)
            assert delivery is not None
            consumer.generate_callback(raising(SystemExit(2)))(None, delivery, None, b"{}")
        assert attempts(grid) == 2

    def test_sys_exit_is_said_with_its_code(self, grid: Grid) -> None:
        grid.put({})
        grid.consumer(max_attempts=1).poll_message(lambda **_: sys.exit("no data"))
        assert grid.dead() == [(b"{}", "SystemExit: no data", 1)]

    def test_also_where_the_callback_has_stopped_the_loop_itself(self, grid: Grid) -> None:
        grid.put({})
        consumer = grid.consumer()

        def stop_and_fail(**kwargs: Any) -> None:
            consumer.stop()
            raise SystemExit(2)

        assert consumer.listen_message(stop_and_fail) == 1
        assert attempts(grid) == 2

    @pytest.mark.parametrize("error", [ZeroDivisionError("torn"), Retry("later", delay=60)])
    def test_an_interruption_costs_no_attempt(self, error: Exception, grid: Grid) -> None:
        grid.put({})
        consumer = grid.consumer(max_attempts=1)

        def preempted(**kwargs: Any) -> None:
            in_thread(consumer.stop)()
            raise error

        for _ in range(3):
            assert consumer.listen_message(preempted) == 1
            grid.clock.advance(3600)
        assert attempts(grid) == 1


class Silent(Retry):
    """Its __init__ does not call the one that it comes from."""

    def __init__(self) -> None:
        pass


class Mute(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError("no text")


class Numeric(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]


class Leaving(Exception):
    def __str__(self) -> str:
        raise SystemExit("from its text")


class Touchy(Retry):
    @property
    def delay(self) -> float:
        raise ZeroDivisionError("no delay")

    @delay.setter
    def delay(self, value: float | None) -> None:
        pass

    count = property(lambda self: 1 / 0, lambda self, value: None)


class MuteRetry(Retry):
    __str__ = Mute.__str__


class MuteReject(Reject):
    __str__ = Leaving.__str__


class Deep(Exception):
    """Of which a traceback cannot be written either."""

    def __init__(self) -> None:
        super().__init__("deep")
        self.__notes__: Any = Hostile()


class Hostile:
    """Whatever is asked of it, it raises."""

    def __getattribute__(self, name: str) -> Any:
        raise ZeroDivisionError(name)

    def __iter__(self) -> Iterator[Any]:
        raise SystemExit("iterated")

    def __repr__(self) -> str:
        raise ZeroDivisionError("repr")

    def __bool__(self) -> bool:
        raise ZeroDivisionError("bool")

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError("eq")

    def __hash__(self) -> int:
        raise ZeroDivisionError("hash")


class TestWhatItRaises:
    @pytest.mark.parametrize(
        "error", [Silent, Mute, Numeric, Leaving, Touchy, MuteRetry, Deep], ids=lambda e: e.__name__
    )
    def test_is_an_attempt_like_any_other(self, error: type[Exception], grid: Grid) -> None:
        grid.put({"bad": 1}, {"bad": 0})
        seen: list[int] = []

        def work(bad: int) -> None:
            if bad:
                raise error
            seen.append(bad)

        assert grid.consumer().listen_message(work, max_jobs=2) == 2
        assert seen == [0]
        assert grid.count() == {"delayed": 1}
        assert attempts(grid) == 2

    @pytest.mark.parametrize("error", [Silent, Mute, Leaving, MuteReject, Deep])
    def test_and_a_dead_letter_in_the_end(self, error: type[Exception], grid: Grid) -> None:
        grid.put({})
        assert grid.consumer(max_attempts=1).poll_message(raising(error)) is None
        ((_, reason, count),) = grid.dead()
        assert reason
        assert "its workers died" not in reason
        assert count == 1

    @pytest.mark.parametrize(
        "make",
        [
            lambda: "soon",
            lambda: -1,
            lambda: float("nan"),
            lambda: float("inf"),
            lambda: 10**400,
            lambda: timedelta(-1),
            Hostile,
        ],
        ids=["text", "negative", "nan", "inf", "too long", "in the past", "hostile"],
    )
    def test_a_delay_that_is_none_gives_the_usual_one(
        self, make: Callable[[], Any], grid: Grid, caplog: pytest.LogCaptureFixture
    ) -> None:
        error = Retry("later")
        error.delay = make()
        grid.put({})
        assert grid.consumer().poll_message(raising(error)) is None
        assert grid.count() == {"delayed": 1}
        grid.clock.advance(1.3)
        assert grid.count() == {"ready": 1}
        assert "which is no time" in caplog.text

    @pytest.mark.parametrize("delay", [timedelta(days=100), 100 * 86_400])
    def test_a_delay_that_the_broker_cannot_do_is_the_longest(
        self,
        delay: Any,
        grid: Grid,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from dataclasses import replace

        monkeypatch.setattr(
            FlakyBackend, "features", replace(FlakyBackend.features, longest_delay=3600.0)
        )
        bench = Bench(grid)
        grid.put({})
        assert bench.run(lambda kwargs: raising(Retry("later", delay=delay))()) == 1
        grid.clock.advance(3590)
        assert grid.count() == {"delayed": 1}
        grid.clock.advance(20)
        assert grid.count() == {"ready": 1}
        assert "3600 s at most" in caplog.text

    def test_a_delay_may_be_a_timedelta(self, grid: Grid) -> None:
        grid.put({})
        grid.consumer().poll_message(raising(Retry("later", delay=timedelta(minutes=2))))
        grid.clock.advance(110)
        assert grid.count() == {"delayed": 1}
        grid.clock.advance(20)
        assert grid.count() == {"ready": 1}

    def test_waiting_is_not_failing(self, grid: Grid, caplog: pytest.LogCaptureFixture) -> None:
        grid.put({})
        consumer = grid.consumer(max_attempts=2)
        seen: list[Any] = []

        def wait_for_peers(**kwargs: Any) -> str | None:
            seen.append(current_job().attempt)
            if len(seen) < 20:
                raise Retry("the peers are not there", delay=0.1, count=False)
            return "begun"

        for _ in range(19):
            assert consumer.poll_message(wait_for_peers) is None
            assert grid.count() == {"delayed": 1}
            grid.clock.advance(0.2)
        assert consumer.poll_message(wait_for_peers) == "begun"
        assert seen == [1] * 20
        assert caplog.text == ""

    def test_twenty_million_characters_are_cut(
        self, grid: Grid, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail_at_length(**kwargs: Any) -> None:
            raise ValueError("x" * 20_000_000)

        grid.put({})
        grid.consumer(max_attempts=1).poll_message(fail_at_length)
        (letter,) = grid.client().dead_letters("train", 1)
        assert letter.reason.startswith("ValueError: xxx")
        assert letter.reason.endswith("...")
        assert len(letter.reason) <= LONGEST_REASON
        assert len(letter.traceback) <= LONGEST_TRACEBACK
        assert len(caplog.text) < 20_000

    def test_of_a_long_traceback_the_end_is_kept(self, grid: Grid) -> None:
        def fail(**kwargs: Any) -> None:
            try:
                raise ValueError("x" * 20_000)
            except ValueError as error:
                raise ZeroDivisionError("the last word") from error

        grid.put({})
        grid.consumer(max_attempts=1).poll_message(fail)
        (letter,) = grid.client().dead_letters("train", 1)
        assert letter.traceback.endswith("ZeroDivisionError: the last word\n")
        assert len(letter.traceback) <= LONGEST_TRACEBACK

    def test_at_the_end_of_the_stack(self, grid: Grid) -> None:
        def endless() -> None:
            endless()

        def call(**kwargs: Any) -> None:  # CPython 3.13.0 lets this one call itself without end
            endless()

        grid.put({}, {})
        assert grid.consumer(max_attempts=1).listen_message(call, max_jobs=2) == 2
        assert [reason.split(":")[0] for _, reason, _ in grid.dead()] == ["RecursionError"] * 2


class TestTheLog:
    @pytest.mark.parametrize("max_attempts", [1, 3])
    def test_has_a_failed_attempt_once(
        self, max_attempts: int, grid: Grid, caplog: pytest.LogCaptureFixture
    ) -> None:
        grid.put({}, id="run-1")
        with caplog.at_level(logging.DEBUG, "synmanager"):
            grid.consumer(max_attempts=max_attempts).poll_message(raising(ValueError("planted")))
        (record,) = caplog.records[1:]  # the first says that the job begins
        text = record.getMessage()
        assert text.startswith("job run-1 of train")
        assert "ValueError: planted" in text.splitlines()[0]
        assert "Traceback" in text
        assert record.levelno == (logging.ERROR if max_attempts == 1 else logging.WARNING)
        if max_attempts > 1:
            assert "attempt 1 of 3" in text

    @pytest.mark.parametrize(("counts", "level"), [(True, logging.WARNING), (False, logging.INFO)])
    def test_has_a_retry_that_was_asked_for_as_a_word_only(
        self, counts: bool, level: int, grid: Grid, caplog: pytest.LogCaptureFixture
    ) -> None:
        grid.put({})
        with caplog.at_level(logging.DEBUG, "synmanager"):
            grid.consumer().poll_message(raising(Retry("not yet", delay=1, count=counts)))
        (record,) = caplog.records[1:]
        assert record.levelno == level
        assert "attempt 1 of 5: not yet; again in 1.0 s" in record.getMessage()
        assert "Traceback" not in caplog.text

    @pytest.mark.parametrize("max_attempts", [1, 5])
    def test_shows_what_would_move_the_cursor(
        self, max_attempts: int, grid: Grid, caplog: pytest.LogCaptureFixture
    ) -> None:
        hostile = "x\nERROR all is lost\x1b[2J\r\u202e"
        grid.put({}, id=hostile)
        with caplog.at_level(logging.DEBUG, "synmanager"):
            grid.consumer(max_attempts=max_attempts).poll_message(raising(ValueError(hostile)))
        texts = [record.getMessage() for record in caplog.records]
        assert not any(mark in text for mark in "\x1b\r\u202e" for text in texts)
        text = "\n".join(texts[1:])
        # Lines of a traceback are below the log's line, and no line of theirs is at its beginning.
        assert all(line.startswith("  ") for line in text.splitlines()[1:])
        if max_attempts == 1:  # in the data it is as it was
            ((_, reason, _),) = grid.dead()
            assert reason == f"ValueError: {hostile}"


async def coroutine_function(**kwargs: Any) -> None:
    """Is never awaited."""


def generator_function(**kwargs: Any) -> Iterator[int]:
    yield 1


class Custom:
    def __await__(self) -> Iterator[None]:
        yield


class Proxied:
    """Gone by the time that anybody looks."""


class TestWhatComesBack:
    @pytest.mark.parametrize(
        ("callback", "kind"),
        [
            (lambda **kwargs: coroutine_function(**kwargs), "coroutine"),
            (lambda **kwargs: generator_function(**kwargs), "generator"),
            (lambda **kwargs: Custom(), "Custom"),
            (lambda **kwargs: Future(), "Future"),
            (lambda kwargs, host: coroutine_function(), "coroutine"),
        ],
        ids=["coroutine", "generator", "awaitable", "future", "README-style"],
    )
    def test_work_that_has_not_run_is_a_dead_letter_that_says_so(
        self, callback: Callable[..., Any], kind: str, grid: Grid
    ) -> None:
        grid.put({"run": 1})
        assert grid.consumer().listen_message(callback, max_jobs=1) == 1
        ((body, reason, count),) = grid.dead()
        assert (body, count) == (b'{"run": 1}', 1)
        assert f"returned a {kind}" in reason
        assert "has not run" in reason

    def test_work_that_has_run_elsewhere_is_done(self, grid: Grid) -> None:
        grid.put({})
        with ThreadPoolExecutor(1) as pool:

            def elsewhere(**kwargs: Any) -> Future[int]:
                future = pool.submit(int)
                future.result()
                return future

            grid.consumer().listen_message(elsewhere, max_jobs=1)
        assert grid.count() == {}

    @pytest.mark.parametrize(
        "make",
        [
            Hostile,
            lambda: weakref.proxy(Proxied()),
            lambda: type("Odd", (), {"__class__": property(lambda self: 1 / 0)})(),
            lambda: ValueError("returned, not raised"),
            lambda: SystemExit(2),
            lambda: Reject("returned, not raised"),
            lambda: Retry,
        ],
        ids=["hostile", "dead proxy", "no class", "error", "exit", "reject", "retry"],
    )
    @pytest.mark.parametrize("role", ["worker", "consumer"])
    def test_what_is_no_result_is_none_and_the_job_is_done(
        self, role: str, make: Callable[[], Any], grid: Grid
    ) -> None:
        grid.put({}, {})
        if role == "worker":
            assert Worker({"train": lambda **_: make()}, url=grid.url).run(burst=True) == 2
        else:
            assert grid.consumer().listen_message(lambda **_: make(), max_jobs=2) == 2
        assert grid.count() == {}
        assert grid.count("completed") == {}

    @pytest.mark.parametrize(
        "value", [True, [1], "loss", 0, object()], ids=lambda value: type(value).__name__
    )
    def test_the_readme_s_own_callback_works_in_a_worker(
        self, value: Any, grid: Grid, caplog: pytest.LogCaptureFixture
    ) -> None:
        for phase in WORK_PHASES[:2]:
            grid.put({}, {}, phase=phase)
        handlers = dict.fromkeys(WORK_PHASES[:2], lambda **_: value)
        assert Worker(handlers, url=grid.url).run(burst=True) == 4
        assert grid.count() == {}
        assert grid.count("completed") == {}
        warnings = [record.getMessage() for record in caplog.records]
        assert len(warnings) == 2  # one for each phase and type
        assert "train returned a" in warnings[1]

    @pytest.mark.parametrize(
        "value",
        [
            {"loss": {(1, 2): 3}},
            {1: 1, "1": 2},
            {"model": "x" * (DEFAULT_MAX_BYTES + 1)},
            {"text": "\ud800"},
        ],
        ids=["tuple key", "twins", "too long", "surrogate"],
    )
    def test_a_result_that_cannot_be_written_is_a_dead_letter_that_keeps_its_text(
        self, value: dict[Any, Any], grid: Grid
    ) -> None:
        grid.put({})
        assert Worker({"train": lambda **_: value}, url=grid.url).run(burst=True) == 1
        ((_, reason, count),) = grid.dead()
        assert count == 1
        assert reason.startswith("its result cannot be published: ")
        assert str(value)[:10] in reason
        assert len(reason) <= LONGEST_REASON

    @pytest.mark.parametrize("error", [ZeroDivisionError("no keys"), SystemExit(2)], ids=repr)
    def test_a_mapping_that_cannot_be_read_is_one_too(
        self, error: BaseException, grid: Grid
    ) -> None:
        class Broken(Mapping[str, Any]):
            def __getitem__(self, key: str) -> Any:
                raise error

            def __iter__(self) -> Iterator[str]:
                raise error

            def __len__(self) -> int:
                return 1

        grid.put({}, {})
        assert Worker({"train": lambda **_: Broken()}, url=grid.url).run(burst=True) == 2
        assert [reason.split(":")[0] for _, reason, _ in grid.dead()] == [
            "its result cannot be published"
        ] * 2


class TestArguments:
    """A call that cannot be made cannot heal: no second attempt."""

    class Method:
        def train(self, run: int) -> None:
            raise AssertionError("never called")

        def __call__(self, run: int) -> None:
            raise AssertionError("never called")

    @staticmethod
    def plain(run: int) -> None:
        raise AssertionError("never called")

    @functools.wraps(plain)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        return TestArguments.plain(*args, **kwargs)

    callbacks: tuple[Any, ...] = (
        plain,
        wrapped,
        functools.partial(plain),
        Method().train,
        Method(),
        lambda run: None,
    )

    @pytest.mark.parametrize(
        "callback", callbacks, ids=["function", "wrapped", "partial", "method", "object", "lambda"]
    )
    @pytest.mark.parametrize(
        ("job", "key"), [({}, "run"), ({"run": 1, "walk": 2}, "walk"), ({"walk": 1}, "run")]
    )
    def test_that_do_not_fit_are_a_dead_letter_at_once_that_names_the_key(
        self, callback: Any, job: dict[str, int], key: str, grid: Grid
    ) -> None:
        grid.put(job)
        assert grid.consumer().listen_message(callback, max_jobs=1) == 1
        ((_, reason, count),) = grid.dead()
        assert count == 1
        assert f"'{key}'" in reason

    def test_a_key_that_a_readme_style_callback_misses_is_its_own_affair(self, grid: Grid) -> None:
        grid.put({})
        grid.consumer().poll_message(lambda kwargs, host: kwargs["run"])
        assert grid.count() == {"delayed": 1}

    def test_a_type_error_from_inside_is_a_failure_like_any_other(self, grid: Grid) -> None:
        grid.put({"run": 1})
        grid.consumer().poll_message(lambda run: len(run))
        assert grid.count() == {"delayed": 1}

    def test_also_one_about_another_function_s_arguments(self, grid: Grid) -> None:
        grid.put({"run": 1})
        grid.consumer().poll_message(lambda run: (lambda walk: walk)(run=run))  # type: ignore[call-arg]
        assert grid.count() == {"delayed": 1}

    def test_what_can_be_called_in_spite_of_what_it_claims_is_called(self, grid: Grid) -> None:
        @functools.wraps(lambda run: None)
        def liar(**kwargs: Any) -> Any:
            return kwargs

        grid.put({"walk": 1})
        assert grid.consumer().poll_message(liar) == {"walk": 1}


class Big:
    """Something that memory would not hold twice."""


class TestMemory:
    @pytest.mark.parametrize("role", ["worker", "consumer"])
    def test_what_was_returned_is_let_go_while_the_loop_is_idle(
        self, role: str, grid: Grid
    ) -> None:
        grid.put({})
        returned: list[weakref.ref[Any]] = []

        def work(**kwargs: Any) -> Any:
            value = Big()
            returned.append(weakref.ref(value))
            return value

        if role == "worker":
            loop: Any = Worker({"train": work}, url=grid.url)
            join = in_thread(loop.run)
        else:
            loop = grid.consumer()
            join = in_thread(loop.listen_message, work)
        until(lambda: returned and not grid.count(), "the job is done")
        until(lambda: gc.collect() >= 0 and returned[0]() is None, "it is let go")
        loop.stop()
        assert join() == 1

    def test_and_so_is_what_it_held_as_it_failed(self, grid: Grid) -> None:
        grid.put({})
        held: list[weakref.ref[Any]] = []
        consumer = grid.consumer()

        def fail(**kwargs: Any) -> None:
            value = Big()
            held.append(weakref.ref(value))
            raise ZeroDivisionError

        join = in_thread(consumer.listen_message, fail)
        until(lambda: grid.count() == {"delayed": 1})
        until(lambda: held[0]() is None, "it is let go")
        consumer.stop()
        join()

    def test_kept_results_are_bounded_in_bytes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kept, "MOST_BYTES", 8_000)
        outcomes = Kept()
        deliveries = [delivery(number) for number in range(100)]
        for each in deliveries:
            outcomes.keep(each, Outcome(End.KEEP, value=Big(), result=Message(b"x" * 1_000)), 2)
        assert len(outcomes) == 8
        assert outcomes.take(deliveries[0]) is None
        found = outcomes.take(deliveries[-1])
        assert found is not None
        assert found[0].value is None  # what counts of it is in the message

    def test_one_that_is_larger_than_all_is_kept_still(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kept, "MOST_BYTES", 10)
        outcomes = Kept()
        outcomes.keep(delivery(1), Outcome(End.KEEP, result=Message(b"x" * 1_000)), 2)
        assert len(outcomes) == 1

    def test_values_of_which_nobody_knows_the_size_are_few(self) -> None:
        outcomes = Kept()
        values = [Big() for _ in range(100)]
        known = [weakref.ref(value) for value in values]
        for number in range(100):
            outcomes.keep(delivery(number), Outcome(End.KEEP, value=values.pop(0)), 2)
        gc.collect()
        assert sum(each() is not None for each in known) == kept.MOST_VALUES

    def test_a_thousand_failures_are_kept(self) -> None:
        outcomes = Kept()
        for number in range(1_200):
            outcomes.keep(delivery(number), Outcome(End.AGAIN, "why"), 2)
        assert len(outcomes) == 1_000


def delivery(number: int) -> Delivery:
    return Delivery(Message(b"{}", id=str(number), submitted_at=1.0), "train", 2, None)


@pytest.fixture
def _signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
class TestSignals:
    def test_a_handler_that_a_framework_left_behind_is_replaced(
        self, grid: Grid, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutdown, "_BETWEEN_LOOKS", 0.0, raising=False)
        heard: list[int] = []
        seen: list[int] = []

        def framework(number: int, frame: FrameType | None) -> None:
            heard.append(number)

        def work(run: int) -> None:
            seen.append(run)
            signal.signal(signal.SIGTERM, framework)
            if run == 2:  # between jobs, as far as the loop is concerned
                client.__dict__["receive"] = receive_after_signal

        def receive_after_signal(*arguments: Any) -> Any:
            signal.raise_signal(signal.SIGTERM)
            return FlakyBackend.receive(client, *arguments)

        consumer = grid.consumer()
        client = grid.flaky(consumer)
        grid.put(*({"run": run} for run in range(5)))
        assert consumer.listen_message(work) == 3
        assert seen == [0, 1, 2]
        assert heard == []
        warnings = [record for record in caplog.records if "SIGTERM" in record.getMessage()]
        assert len(warnings) == 1

    def test_while_the_callback_runs_it_is_the_callback_s(self, grid: Grid) -> None:
        heard: list[int] = []

        def work(**kwargs: Any) -> None:
            signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
            signal.raise_signal(signal.SIGTERM)

        grid.put({})
        assert grid.consumer().listen_message(work, max_jobs=1) == 1
        assert heard == [signal.SIGTERM]
        assert threading.current_thread() is threading.main_thread()
