"""What a failure means: retry with backoff, dead letter, or back to the queue untouched."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from grid import Bench, Grid

from synmanager import Reject, Retry, current_job
from synmanager.backends import Delivery
from synmanager.engine.retry import LONGEST_DELAY, RetryPolicy
from synmanager.errors import BrokerUnavailable, Undecodable
from synmanager.message import SCHEMA, Message

JOB = {"run": 1}


def fail(**kwargs: Any) -> None:
    raise ZeroDivisionError("planted")


class TestPolicy:
    def test_backs_off_by_four_up_to_an_hour(self) -> None:
        policy = RetryPolicy(first_delay=1.0)
        delays = [policy.delay(attempt, lambda low, high: 1.0) for attempt in range(1, 9)]
        assert delays == [1, 4, 16, 64, 256, 1024, 3600, 3600]
        assert policy.delay(10_000, lambda low, high: 1.0) == LONGEST_DELAY

    def test_jitters_by_a_quarter_either_way(self) -> None:
        policy = RetryPolicy(first_delay=8.0)
        assert policy.delay(1, lambda low, high: low) == 6
        assert policy.delay(1, lambda low, high: high) == 10
        assert len({policy.delay(1) for _ in range(10)}) > 1

    def test_counts_attempts(self) -> None:
        policy = RetryPolicy(max_attempts=3)
        assert [policy.exhausted(attempt) for attempt in (1, 2, 3, 4)] == [False, False, True, True]


class TestRetry:
    def test_waits_in_the_broker_and_comes_back(self, grid: Grid) -> None:
        grid.put(JOB)
        consumer = grid.consumer()
        consumer.poll_message(fail)
        assert grid.count() == {"delayed": 1}
        grid.clock.advance(0.5)
        assert grid.count() == {"delayed": 1}
        grid.clock.advance(0.75)
        attempts: list[Any] = []
        consumer.poll_message(lambda run: attempts.append(current_job().attempt))
        assert attempts == [2]
        assert grid.count() == {}

    def test_keeps_id_rank_and_body(self, grid: Grid) -> None:
        job_id = grid.producer().submit(JOB, priority="high")
        consumer = grid.consumer()
        seen: list[Any] = []

        def note(run: int) -> None:
            job = current_job()
            assert job is not None
            seen.append((run, job.id, job.rank, job.submitted_at))
            raise ZeroDivisionError

        for _ in range(2):
            consumer.poll_message(note)
            grid.clock.advance(5)
        assert seen[0] == seen[1]
        assert seen[0][1] == job_id

    def test_the_waits_grow(self, grid: Grid) -> None:
        grid.put(JOB)
        consumer = grid.consumer()
        for wait in (1, 4, 16, 64):
            consumer.poll_message(fail)
            grid.clock.advance(0.6 * wait)
            assert grid.count() == {"delayed": 1}
            grid.clock.advance(0.65 * wait)
            assert grid.count() == {"ready": 1}
        consumer.poll_message(fail)
        assert grid.count() == {"dead": 1}

    def test_the_first_wait_is_a_setting(self, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SYNMANAGER_RETRY_DELAY", "100")
        grid.put(JOB)
        grid.consumer().poll_message(fail)
        grid.clock.advance(74)
        assert grid.count() == {"delayed": 1}
        grid.clock.advance(52)
        assert grid.count() == {"ready": 1}

    @pytest.mark.parametrize("delay", [0, 7200])
    def test_asked_for_by_the_callback(self, delay: float, grid: Grid) -> None:
        def ask(run: int) -> None:
            raise Retry("not yet", delay=delay)

        grid.put(JOB)
        consumer = grid.consumer()
        assert consumer.poll_message(ask) is None
        if delay:
            grid.clock.advance(delay - 10)
            assert grid.count() == {"delayed": 1}
            grid.clock.advance(11)
        assert grid.count() == {"ready": 1}

    def test_asked_for_without_a_delay_backs_off(self, grid: Grid) -> None:
        def ask(run: int) -> None:
            raise Retry

        grid.put(JOB)
        grid.consumer(max_attempts=1).poll_message(ask)
        assert grid.dead() == [(b'{"run": 1}', "the callback asked for a retry", 1)]
        grid.put(JOB)
        grid.consumer().poll_message(ask)
        assert grid.count() == {"delayed": 1, "dead": 1}

    @pytest.mark.parametrize("delay", [-1, float("nan"), float("inf")])
    def test_a_delay_that_cannot_be(self, delay: float) -> None:
        with pytest.raises(ValueError, match="delay"):
            Retry(delay=delay)

    def test_waiting_politely_is_no_warning_in_the_log(
        self, grid: Grid, caplog: pytest.LogCaptureFixture
    ) -> None:
        def ask(run: int) -> None:
            raise Retry(delay=0, count=False)

        grid.put(JOB)
        with caplog.at_level(logging.WARNING, "synmanager"):
            grid.consumer().poll_message(ask)
        assert caplog.text == ""


class TestDeadLetter:
    def test_after_the_last_attempt_with_the_last_error(self, grid: Grid) -> None:
        grid.put(JOB)
        consumer = grid.consumer(max_attempts=3)
        for _ in range(5):
            consumer.poll_message(fail)
            grid.clock.advance(3600)
        assert grid.dead() == [(b'{"run": 1}', "ZeroDivisionError: planted", 3)]
        assert grid.count() == {"dead": 1}

    def test_a_retry_on_the_last_attempt_is_one_too_many(self, grid: Grid) -> None:
        def ask(run: int) -> None:
            raise Retry("never ready", delay=0)

        grid.put(JOB)
        consumer = grid.consumer(max_attempts=2)
        assert consumer.listen_message(ask, max_jobs=2) == 2
        assert grid.dead() == [(b'{"run": 1}', "never ready", 2)]

    def test_at_once_when_rejected(self, grid: Grid) -> None:
        def reject(run: int) -> None:
            raise Reject("no such project")

        grid.put(JOB)
        assert grid.consumer().poll_message(reject) is None
        assert grid.dead() == [(b'{"run": 1}', "no such project", 1)]

    def test_rejected_without_a_word(self, grid: Grid) -> None:
        def reject(run: int) -> None:
            raise Reject

        grid.put(JOB)
        grid.consumer().poll_message(reject)
        assert grid.dead() == [(b'{"run": 1}', "rejected by the callback", 1)]

    def test_the_default_is_five_attempts(self, grid: Grid) -> None:
        grid.put(JOB)
        consumer = grid.consumer()
        for _ in range(7):
            consumer.poll_message(fail)
            grid.clock.advance(3600)
        assert [attempts for _, _, attempts in grid.dead()] == [5]

    def test_the_attempts_are_a_setting(self, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SYNMANAGER_MAX_ATTEMPTS", "1")
        grid.put(JOB)
        grid.consumer().poll_message(fail)
        assert grid.count() == {"dead": 1}

    def test_is_logged_with_its_reason(self, grid: Grid, caplog: pytest.LogCaptureFixture) -> None:
        (message,) = grid.put(JOB)
        with caplog.at_level(logging.ERROR, "synmanager"):
            grid.consumer(max_attempts=1).poll_message(fail)
        assert f"job {message.id} of train becomes a dead letter: ZeroDivision" in caplog.text

    def test_keeps_the_end_of_the_traceback(self, grid: Grid) -> None:
        grid.put(JOB)
        grid.consumer(max_attempts=1).poll_message(fail)
        (letter,) = grid.client().dead_letters("train", 1)
        assert letter.traceback.startswith("Traceback")
        assert letter.traceback.endswith("ZeroDivisionError: planted\n")
        assert "in fail" in letter.traceback


class TestCrashes:
    """A job that kills its workers has never failed: only its attempts tell."""

    def test_a_job_started_too_often_is_buried_without_running(self, grid: Grid) -> None:
        grid.aged(4, JOB)
        seen: list[int] = []
        consumer = grid.consumer(max_attempts=3)
        assert consumer.poll_message(lambda run: seen.append(run)) is None
        assert seen == []
        ((body, reason, attempts),) = grid.dead()
        assert (body, attempts) == (b'{"run": 1}', 4)
        assert "3 times" in reason

    def test_its_last_attempt_is_still_made(self, grid: Grid) -> None:
        grid.aged(3, JOB)
        assert grid.consumer(max_attempts=3).poll_message(lambda run: run) == 1
        assert grid.count() == {}

    def test_crashes_and_failures_count_alike(self, grid: Grid) -> None:
        grid.put(JOB)
        consumer = grid.consumer(max_attempts=3)
        grid.client().receive(["train"], 0)
        grid.crash_holders()
        grid.client().receive(["train"], 0)
        grid.crash_holders()
        consumer.poll_message(fail)
        assert [attempts for _, _, attempts in grid.dead()] == [3]

    def test_a_consumer_that_disconnects_while_it_holds_a_job_is_no_different(
        self, grid: Grid
    ) -> None:
        grid.put(JOB)
        holder = grid.client()
        holder.receive(["train"], 0)
        holder.close()
        attempts: list[Any] = []
        grid.consumer().poll_message(lambda run: attempts.append(current_job().attempt))
        assert attempts == [2]


UNDECODABLE = {
    "not UTF-8": b"\xff\xfe\x00",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "with a BOM": b'\xef\xbb\xbf{"a": 1}',
    "empty": b"",
    "not JSON": b"perform_action",
    "cut off": b'{"run": 1',
    "two objects": b"{}{}",
    "a scalar": b"7",
    "null": b"null",
    "a string": b'"{}"',
    "an array": b'[{"run": 1}]',
    "100,000 deep arrays": b"[" * 100_000,
    "100,000 deep objects": b'{"a":' * 100_000,
    "a number too long to read": b'{"a": ' + b"9" * 10_000 + b"}",
}


class TestUndecodable:
    @pytest.mark.parametrize("body", UNDECODABLE.values(), ids=UNDECODABLE.keys())
    def test_is_buried_with_its_bytes_and_a_reason_and_the_consumer_lives(
        self, body: bytes, grid: Grid
    ) -> None:
        grid.put(body, JOB)
        seen: list[int] = []
        consumer = grid.consumer()
        assert consumer.listen_message(lambda run: seen.append(run), max_jobs=2) == 2
        assert seen == [1]
        ((buried, reason, attempts),) = grid.dead()
        assert (buried, attempts) == (body, 1)
        assert "body" in reason
        assert grid.count() == {"dead": 1}

    @pytest.mark.parametrize("body", UNDECODABLE.values(), ids=UNDECODABLE.keys())
    def test_is_undecodable_to_the_codec(self, body: bytes, grid: Grid) -> None:
        with pytest.raises(Undecodable):
            grid.consumer().parse_message(body)

    def test_also_when_polled(self, grid: Grid) -> None:
        grid.put(b"[]")
        assert grid.consumer().poll_message(lambda **_: 1) is None
        assert grid.count() == {"dead": 1}

    def test_is_not_called_a_failure_of_the_callback(
        self, grid: Grid, caplog: pytest.LogCaptureFixture
    ) -> None:
        grid.put(b"[]")
        with caplog.at_level(logging.DEBUG, "synmanager"):
            grid.consumer().poll_message(lambda **_: 1)
        assert "Traceback" not in caplog.text

    def test_over_the_limit_of_size(self, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SYNMANAGER_MAX_BYTES", "1000")
        body = b'{"a": "%s"}' % (b"x" * 1000)
        grid.put(body)
        assert grid.consumer().poll_message(lambda **_: 1) is None
        ((buried, reason, _),) = grid.dead()
        assert buried == body
        assert "1,000" in reason

    def test_written_by_a_newer_version(self, grid: Grid) -> None:
        grid.put(JOB, schema=SCHEMA + 1)
        assert grid.consumer().poll_message(lambda run: run) is None
        ((body, reason, _),) = grid.dead()
        assert body == b'{"run": 1}'
        assert "newer" in reason
        assert "upgrade" in reason

    def test_written_by_an_older_one_is_read(self, grid: Grid) -> None:
        grid.put(JOB, schema=0, submitted_at=None)
        assert grid.consumer().poll_message(lambda run: run) == 1

    def test_a_defect_that_the_driver_found(self, grid: Grid) -> None:
        bench = Bench(grid)
        grid.put(b"what there was")
        delivery = bench.backend.receive(["train"], 0)
        assert isinstance(delivery, Delivery)
        delivery.defect = "the field 'id' is missing"
        assert bench.runner.handle(delivery, lambda kwargs: 1) is None
        assert grid.dead() == [(b"what there was", "the field 'id' is missing", 1)]

    def test_is_buried_though_it_was_started_too_often(self, grid: Grid) -> None:
        grid.put(b"[]")
        for _ in range(9):
            grid.client().receive(["train"], 0)
            grid.crash_holders()
        grid.consumer().poll_message(lambda **_: 1)
        ((_, reason, _),) = grid.dead()
        assert "list" in reason


class TestInterrupted:
    def interrupt(self, **kwargs: Any) -> None:
        raise KeyboardInterrupt("planted")

    @pytest.mark.parametrize("how", ["listen", "poll"])
    def test_the_job_goes_back_uncounted_and_the_error_on(self, how: str, grid: Grid) -> None:
        grid.put(JOB)
        consumer = grid.consumer()
        run = consumer.listen_message if how == "listen" else consumer.poll_message
        for _ in range(8):  # more often than a job may fail
            with pytest.raises(KeyboardInterrupt, match="planted"):
                run(self.interrupt)
            assert grid.count() == {"ready": 1}
        attempts: list[Any] = []
        consumer.poll_message(lambda run: attempts.append(current_job().attempt))
        assert attempts == [1]

    def test_also_where_the_broker_is_gone(self, grid: Grid) -> None:
        bench = Bench(grid)
        grid.put(JOB)
        bench.backend.fail("nack", BrokerUnavailable("gone"))
        with pytest.raises(KeyboardInterrupt, match="planted"):
            bench.run(lambda kwargs: self.interrupt())
        assert grid.count() == {"leased": 1}


def test_a_message_keeps_its_bytes_through_failures_and_redrive(grid: Grid) -> None:
    body = b'{ "b" : 1,\t"a": "\xc3\xa9" }'
    grid.put(body)
    consumer = grid.consumer(max_attempts=1)
    consumer.poll_message(fail)
    consumer.redrive()
    delivery = grid.client().receive(["train"], 0)
    assert delivery is not None
    assert isinstance(delivery.message, Message)
    assert delivery.message.body == body
