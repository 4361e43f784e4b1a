"""Reconnection: what is repeated, for how long, and what is not."""

from __future__ import annotations

import itertools
import logging
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import pytest
from grid import FlakyBackend, Grid, in_thread, until

from synmanager.backends import Address
from synmanager.engine.outcomes import Step
from synmanager.engine.session import Session, _backoff
from synmanager.errors import (
    AccessRefused,
    BrokerUnavailable,
    InvalidJob,
    LeaseLost,
    NotConnected,
    PublishInterrupted,
    PublishRefused,
    TopologyError,
    Unroutable,
)
from synmanager.message import Message
from synmanager.phases import TRAIN

GONE = "the broker is gone"


def gone() -> BrokerUnavailable:
    return BrokerUnavailable(GONE)


def messages(count: int) -> list[Message]:
    return [Message(b"{}") for _ in range(count)]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synmanager.engine.session._backoff", lambda: itertools.repeat(0.01))


@pytest.fixture
def backend(grid: Grid) -> FlakyBackend:
    return FlakyBackend(Address("memory"), grid.broker)


@pytest.fixture
def session(backend: FlakyBackend) -> Any:
    session = Session(backend)
    session.open(TRAIN.spec)
    backend.calls.clear()
    yield session
    session.close()


def count(session: Session) -> int:
    return session.call(lambda backend: backend.count("train").ready)


class TestOpening:
    def test_connects_and_declares(self, backend: FlakyBackend) -> None:
        session = Session(backend)
        session.open(TRAIN.spec)
        assert backend.calls == ["open", "declare"]
        assert session.is_open
        session.close()
        assert not session.is_open
        assert not backend.is_open

    def test_fails_at_once_by_default(self, backend: FlakyBackend) -> None:
        backend.fail("open", gone())
        with pytest.raises(BrokerUnavailable, match=GONE):
            Session(backend).open(TRAIN.spec)
        assert backend.calls == ["open"]

    def test_waits_for_the_broker_if_patient(self, backend: FlakyBackend) -> None:
        backend.fail("open", gone(), gone())
        session = Session(backend)
        session.open(TRAIN.spec, patient=True)
        assert backend.calls[:4] == ["open", "open", "open", "declare"]
        assert count(session) == 0
        session.close()

    def test_patience_can_be_called_off(self, backend: FlakyBackend) -> None:
        backend.fail("open", *(gone() for _ in range(1000)))
        off = threading.Event()
        session = Session(backend)
        join = in_thread(session.open, patient=True, called_off=off.is_set)
        until(lambda: len(backend.calls) >= 2)
        off.set()
        with pytest.raises(BrokerUnavailable):
            join()

    @pytest.mark.parametrize("is_called_off", [False, True])
    def test_waits_for_what_it_declares_if_patient(
        self, is_called_off: bool, backend: FlakyBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A disk that is full, for one, may stay so for longer than a call waits."""
        monkeypatch.setattr("synmanager.engine.session.CALL_PATIENCE", 0.0)
        backend.fail("declare", *(gone() for _ in range(1000)))
        off = threading.Event()
        session = Session(backend)
        join = in_thread(session.open, TRAIN.spec, patient=True, called_off=off.is_set)
        until(lambda: backend.calls.count("declare") >= 5)
        if is_called_off:
            off.set()
            with pytest.raises(BrokerUnavailable):
                join()
        else:
            backend.failures.clear()
            join()
            assert count(session) == 0
        session.close()

    @pytest.mark.parametrize("patient", [False, True])
    def test_a_refusal_is_not_tried_again(self, patient: bool, backend: FlakyBackend) -> None:
        backend.fail("open", AccessRefused("wrong password"))
        with pytest.raises(AccessRefused):
            Session(backend).open(TRAIN.spec, patient=patient)
        assert backend.calls == ["open"]


class TestReconnecting:
    def test_a_call_is_repeated_on_a_new_connection(
        self, session: Session, backend: FlakyBackend, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend.fail("receive", gone())
        with caplog.at_level(logging.WARNING, "synmanager"):
            assert session.call(lambda backend: backend.receive(["train"], 0)) is None
        assert backend.calls == ["receive", "open", "declare", "receive"]
        assert "reconnecting" in caplog.text
        assert GONE in caplog.text
        assert "the broker is back" in caplog.text

    @pytest.mark.parametrize("error", [TopologyError("in the way"), RuntimeError("a defect")])
    def test_what_could_not_be_declared_again_is_declared_once_more(
        self, error: Exception, session: Session, backend: FlakyBackend
    ) -> None:
        backend.break_connection()
        backend.fail("declare", error)
        assert count(session) == 0
        assert count(session) == 0
        assert backend.calls == ["open", "declare", "declare"]

    def test_what_can_not_be_declared_is_declared_by_the_next_call(
        self, session: Session, backend: FlakyBackend
    ) -> None:
        backend.break_connection()
        backend.fail("declare", TopologyError("in the way"), TopologyError("in the way"))
        with pytest.raises(TopologyError):
            count(session)
        assert backend.is_open
        assert count(session) == 0
        assert count(session) == 0
        assert backend.calls == ["open", "declare", "declare", "declare"]

    def test_a_failing_declaration_gives_nothing_back(
        self, session: Session, backend: FlakyBackend, grid: Grid
    ) -> None:
        session.publish(TRAIN.exchange.name, TRAIN.routing_key, messages(1))
        delivery = session.call(lambda backend: backend.receive(["train"], 0))
        assert delivery is not None
        backend.break_connection()
        backend.fail("declare", TopologyError("in the way"), TopologyError("in the way"))
        with pytest.raises(TopologyError):
            count(session)
        assert grid.count() == {"leased": 1}
        session.call(lambda backend: backend.ack(delivery))
        assert grid.count() == {}

    def test_a_broker_emptied_between_two_connections_is_declared_everything(
        self, session: Session, grid: Grid
    ) -> None:
        session.close()
        grid.broker.queues.clear()
        grid.broker.bindings.clear()
        grid.broker.exchanges.clear()
        session.open(TRAIN.spec)
        assert count(session) == 0

    def test_a_broker_that_came_back_empty_is_declared_everything(
        self, session: Session, backend: FlakyBackend, grid: Grid
    ) -> None:
        session.publish(TRAIN.exchange.name, TRAIN.routing_key, messages(1))
        grid.broker.queues.clear()
        grid.broker.bindings.clear()
        grid.broker.exchanges.clear()
        backend.break_connection()
        assert count(session) == 0
        session.publish(TRAIN.exchange.name, TRAIN.routing_key, messages(2))
        assert count(session) == 2

    def test_what_is_declared_later_is_declared_again_too(
        self, session: Session, backend: FlakyBackend, grid: Grid
    ) -> None:
        from synmanager.phases import EVALUATE

        session.declare(EVALUATE.spec)
        session.declare(EVALUATE.spec, TRAIN.spec)  # known: no I/O
        assert backend.calls == ["declare"]
        grid.broker.queues.clear()
        backend.break_connection()
        assert count(session) == 0
        assert set(grid.broker.queues) == {"train", "evaluate"}

    def test_as_often_as_needed(self, session: Session, backend: FlakyBackend) -> None:
        backend.fail("receive", gone())
        backend.fail("open", gone(), gone())
        session.call(lambda backend: backend.receive(["train"], 0))
        assert backend.calls == ["receive", "open", "open", "open", "declare", "receive"]

    def test_also_when_declaring_again_fails(self, session: Session, backend: FlakyBackend) -> None:
        backend.fail("receive", gone())
        backend.fail("declare", gone())
        session.call(lambda backend: backend.receive(["train"], 0))
        assert backend.calls == [
            "receive", "open", "declare", "open", "declare", "receive",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        "error",
        [
            AccessRefused("no"),
            PublishRefused("no"),
            LeaseLost("no"),
            InvalidJob("no"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_no_other_error_is_tried_again(
        self, error: Exception, session: Session, backend: FlakyBackend
    ) -> None:
        backend.fail("receive", error)
        with pytest.raises(type(error)):
            session.call(lambda backend: backend.receive(["train"], 0))
        assert backend.calls == ["receive"]

    @pytest.mark.parametrize(
        "error", [TopologyError("deleted"), Unroutable("unbound")], ids=["missing", "unbound"]
    )
    def test_what_is_gone_is_declared_once_more(
        self,
        error: Exception,
        session: Session,
        backend: FlakyBackend,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        backend.fail("receive", error)
        assert session.call(lambda backend: backend.receive(["train"], 0)) is None
        assert backend.calls == ["receive", "declare", "receive"]
        assert caplog.text == ""
        backend.calls.clear()
        backend.fail("receive", error, error)
        with pytest.raises(type(error)):
            session.call(lambda backend: backend.receive(["train"], 0))
        assert backend.calls == ["receive", "declare", "receive"]

    def test_a_queue_that_was_deleted_is_there_again(self, session: Session, grid: Grid) -> None:
        grid.broker.queues.clear()
        grid.broker.bindings.clear()
        session.publish(TRAIN.exchange.name, TRAIN.routing_key, messages(1))
        assert count(session) == 1

    def test_what_nobody_declared_is_missing_at_once(self, backend: FlakyBackend) -> None:
        session = Session(backend)
        session.open()
        with pytest.raises(TopologyError):
            session.call(lambda backend: backend.count("nowhere"))
        session.close()


class TestRefusedAtAReconnection:
    """Brokers that boot refuse those whom they know."""

    def test_a_login_that_worked_is_tried_for_a_while(
        self, session: Session, backend: FlakyBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("synmanager.engine.session.LOGIN_PAUSE", 0.01)
        backend.fail("receive", gone())
        backend.fail("open", gone(), *(AccessRefused("no such user") for _ in range(3)))
        assert session.call(lambda backend: backend.receive(["train"], 0)) is None
        assert backend.calls == ["receive", *["open"] * 5, "declare", "receive"]

    @pytest.mark.parametrize("endless", [False, True])
    def test_and_no_longer(
        self,
        endless: bool,
        session: Session,
        backend: FlakyBackend,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("synmanager.engine.session.LOGIN_PAUSE", 0.01)
        monkeypatch.setattr("synmanager.engine.session.LOGIN_PATIENCE", 0.1)
        backend.break_connection()
        backend.fail("open", *(AccessRefused("the password was changed") for _ in range(1000)))
        with pytest.raises(AccessRefused, match="password was changed"):
            session.call(lambda backend: backend.receive(["train"], 0), endless=endless)
        assert backend.calls.count("open") >= 2

    def test_the_patience_begins_anew_once_it_worked(
        self, session: Session, backend: FlakyBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("synmanager.engine.session.LOGIN_PAUSE", 0.01)
        monkeypatch.setattr("synmanager.engine.session.LOGIN_PATIENCE", 60)
        for _ in range(2):
            backend.break_connection()
            backend.fail("open", AccessRefused("not yet"))
            assert count(session) == 0
            assert session._refused_at is None

    def test_seldom_lest_it_be_taken_for_an_attack(
        self, session: Session, backend: FlakyBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pauses: list[float] = []

        def sleep(self: Session, seconds: float, *rest: Any) -> bool:
            pauses.append(seconds)
            return True

        monkeypatch.setattr(Session, "_sleep", sleep)
        backend.break_connection()
        backend.fail("open", gone(), AccessRefused("not yet"), AccessRefused("not yet"))
        assert count(session) == 0
        assert pauses == [0.01, 10, 10]

    def test_is_for_a_minute(self) -> None:
        from synmanager.engine import session

        assert session.LOGIN_PATIENCE == 60


class TestTheUnexpected:
    """No driver raises it, and it is no reason to end."""

    def test_is_tried_again_and_logged_with_its_traceback(
        self, session: Session, backend: FlakyBackend, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend.fail("receive", RuntimeError("a defect"))
        assert session.call(lambda backend: backend.receive(["train"], 0)) is None
        assert backend.calls == ["receive", "receive"]
        assert "RuntimeError: a defect" in caplog.text

    def test_twice_in_a_call_it_is_unavailable_and_says_why(
        self, session: Session, backend: FlakyBackend
    ) -> None:
        error = RuntimeError("a defect")
        backend.fail("receive", error, error)
        with pytest.raises(BrokerUnavailable, match="unexpected RuntimeError: a defect") as caught:
            session.call(lambda backend: backend.receive(["train"], 0))
        assert caught.value.__cause__ is error
        assert count(session) == 0

    def test_in_a_loop_it_is_waited_out_on_a_new_connection(
        self, session: Session, backend: FlakyBackend
    ) -> None:
        backend.fail("receive", *(RuntimeError("a defect") for _ in range(3)))
        receive = lambda backend: backend.receive(["train"], 0)  # noqa: E731
        assert session.call(receive, step=Step.TAKE, endless=True) is None
        assert backend.calls[:5] == ["receive", "receive", "open", "declare", "receive"]

    def test_at_the_first_connection_it_is_raised_as_it_is(self, backend: FlakyBackend) -> None:
        backend.fail("open", RuntimeError("a defect"))
        with pytest.raises(RuntimeError, match="a defect"):
            Session(backend).open()

    def test_what_a_caller_s_own_handler_raises_is_the_caller_s(
        self, session: Session, backend: FlakyBackend
    ) -> None:
        def ring(number: int, frame: FrameType | None) -> None:
            raise TimeoutError("mine")

        before = signal.signal(signal.SIGUSR1, ring)
        try:
            for step in Step:
                with pytest.raises(TimeoutError, match="mine"):
                    session.call(lambda backend: signal.raise_signal(signal.SIGUSR1), step=step)
        finally:
            signal.signal(signal.SIGUSR1, before)


class TestReconnectingTogether:
    def test_many_threads_make_one_connection(
        self, session: Session, backend: FlakyBackend
    ) -> None:
        backend.break_connection()
        joins = [in_thread(count, session) for _ in range(16)]
        assert [join() for join in joins] == [0] * 16
        assert backend.calls.count("open") == 1


class TestPatience:
    def test_the_user_s_limit(self, backend: FlakyBackend) -> None:
        session = Session(backend, reconnect=0.3)
        session.open(TRAIN.spec)
        backend.fail("open", *(gone() for _ in range(1000)))
        backend.break_connection()
        began = time.monotonic()
        for endless in (False, True):
            with pytest.raises(BrokerUnavailable, match=GONE):
                session.call(lambda backend: backend.receive(["train"], 0), endless=endless)
        assert 0.6 <= time.monotonic() - began < 30  # a call without a limit of its own takes 60

    def test_none_at_all(self, backend: FlakyBackend) -> None:
        session = Session(backend, reconnect=0)
        session.open(TRAIN.spec)
        backend.fail("receive", gone())
        with pytest.raises(BrokerUnavailable):
            session.call(lambda backend: backend.receive(["train"], 0))
        assert backend.calls == ["open", "declare", "receive"]
        assert count(session) == 0  # the next call tries anew

    def test_without_a_limit_a_call_gives_up(
        self, session: Session, backend: FlakyBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("synmanager.engine.session.CALL_PATIENCE", 0.2)
        backend.fail("open", *(gone() for _ in range(1000)))
        backend.break_connection()
        with pytest.raises(BrokerUnavailable):
            count(session)

    def test_without_a_limit_an_endless_call_goes_on(
        self, session: Session, backend: FlakyBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("synmanager.engine.session.CALL_PATIENCE", 0.1)
        backend.fail("open", gone(), gone(), gone())
        backend.break_connection()
        assert session.call(lambda backend: backend.receive(["train"], 0), endless=True) is None
        assert backend.calls.count("open") == 4

    def test_is_sixty_seconds(self) -> None:
        from synmanager.engine import session

        assert session.CALL_PATIENCE == 60

    def test_called_off(self, session: Session, backend: FlakyBackend) -> None:
        off = threading.Event()
        backend.fail("receive", gone())
        backend.fail("open", *(gone() for _ in range(1000)))
        join = in_thread(
            session.call,
            lambda backend: backend.receive(["train"], 0),
            endless=True,
            called_off=off.is_set,
        )
        until(lambda: backend.calls.count("open") >= 2)
        off.set()
        with pytest.raises(BrokerUnavailable):
            join()

    def test_called_off_beforehand_a_call_is_still_tried_once(
        self, session: Session, backend: FlakyBackend
    ) -> None:
        assert session.call(lambda backend: 7, called_off=lambda: True) == 7
        backend.fail("receive", gone())
        with pytest.raises(BrokerUnavailable):
            session.call(lambda backend: backend.receive(["train"], 0), called_off=lambda: True)
        assert backend.calls == ["receive"]

    def test_the_backoff_doubles_to_three_seconds(self) -> None:
        pauses = [pause for pause, _ in zip(_backoff(), range(10), strict=False)]
        for pause, nominal in zip(pauses, [0.1, 0.2, 0.4, 0.8, 1.6, 3, 3, 3, 3, 3], strict=True):
            assert 0.75 * nominal <= pause <= 1.25 * nominal
        assert len(set(pauses)) == 10


class TestPublishing:
    def publish(self, session: Session, batch: Sequence[Message], **options: Any) -> None:
        session.publish(TRAIN.exchange.name, TRAIN.routing_key, batch, **options)

    def test_an_interruption_repeats_only_the_unconfirmed_with_the_same_ids(
        self, session: Session, backend: FlakyBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent: list[list[str]] = []
        publish = FlakyBackend.publish

        def record(
            self: FlakyBackend, exchange: str, key: str, batch: Sequence[Message], **options: Any
        ) -> int:
            sent.append([message.id for message in batch])
            return publish(self, exchange, key, batch, **options)

        monkeypatch.setattr(FlakyBackend, "publish", record)
        batch = messages(5)
        ids = [message.id for message in batch]
        backend.fail(
            "publish",
            PublishInterrupted(GONE, batch[2:]),
            PublishInterrupted(GONE, batch[3:]),
            gone(),
        )
        self.publish(session, batch, delay=60)
        assert sent == [ids, ids[2:], ids[3:], ids[3:]]
        assert backend.count("train").delayed == 2  # the delay is kept as well

    def test_a_broker_that_stays_away_is_said_so(self, backend: FlakyBackend) -> None:
        session = Session(backend, reconnect=0.1)
        session.open(TRAIN.spec)
        batch = messages(2)
        backend.fail("publish", PublishInterrupted(GONE, batch))
        backend.fail("open", *(gone() for _ in range(1000)))
        with pytest.raises(BrokerUnavailable, match=GONE):
            self.publish(session, batch)

    def test_a_refusal_is_not_tried_again_and_says_what_was_not_accepted(
        self, session: Session, backend: FlakyBackend
    ) -> None:
        batch = messages(5)
        backend.fail("publish", PublishRefused("no", batch[2:]))
        with pytest.raises(PublishRefused) as caught:
            self.publish(session, batch)
        assert caught.value.unconfirmed == tuple(batch[2:])
        assert backend.calls == ["publish"]

    def test_without_a_route_it_is_tried_once_more(
        self, session: Session, backend: FlakyBackend
    ) -> None:
        batch = messages(5)
        backend.fail("publish", Unroutable("no", batch), Unroutable("no", batch[3:]))
        with pytest.raises(Unroutable) as caught:
            self.publish(session, batch)
        assert caught.value.unconfirmed == tuple(batch[3:])
        assert backend.calls == ["publish", "declare", "publish"]

    def test_tells_how_many_the_queue_had_already(self, session: Session) -> None:
        batch = messages(3)
        self.publish(session, batch[:2])
        assert session.publish(TRAIN.exchange.name, TRAIN.routing_key, batch) == 2

    def test_but_not_where_what_it_repeated_may_have_been_its_own(
        self, session: Session, backend: FlakyBackend
    ) -> None:
        batch = messages(2)
        self.publish(session, batch)
        backend.fail("publish", PublishInterrupted(GONE, batch))
        assert session.publish(TRAIN.exchange.name, TRAIN.routing_key, batch) == 0

    @pytest.mark.parametrize(
        "error", [PublishRefused("no"), Unroutable("no"), TopologyError("no")], ids=repr
    )
    def test_a_result_waits(
        self, error: Exception, session: Session, backend: FlakyBackend
    ) -> None:
        backend.fail("publish", *[error] * 3)
        self.publish(session, messages(1), step=Step.PUBLISH, endless=True)
        assert backend.calls.count("publish") == 4

    def test_can_be_called_off(self, session: Session, backend: FlakyBackend) -> None:
        backend.fail("publish", gone())
        with pytest.raises(BrokerUnavailable):
            self.publish(session, messages(1), called_off=lambda: True)
        assert backend.calls == ["publish"]


class TestClosing:
    def test_before_and_after_there_is_no_call(
        self, session: Session, backend: FlakyBackend
    ) -> None:
        with pytest.raises(NotConnected):
            Session(backend).call(lambda backend: None)
        session.close()
        with pytest.raises(NotConnected):
            count(session)
        session.close()

    def test_ends_a_call_that_waits_for_the_broker(
        self, session: Session, backend: FlakyBackend
    ) -> None:
        backend.break_connection()
        backend.fail("open", *(gone() for _ in range(1000)))
        join = in_thread(session.call, lambda backend: backend.receive(["train"], 0), endless=True)
        until(lambda: len(backend.calls) >= 2)
        session.close()
        with pytest.raises(NotConnected):
            join()

    def test_ends_a_call_that_waits_at_the_broker(
        self, session: Session, backend: FlakyBackend
    ) -> None:
        join = in_thread(session.call, lambda backend: backend.receive(["train"], 60))
        until(lambda: "receive" in backend.calls)
        session.close()
        with pytest.raises(NotConnected):
            join()

    def test_leaves_no_connection_behind_that_was_just_being_made(
        self, session: Session, backend: FlakyBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connecting, go_on = threading.Event(), threading.Event()
        open_at_last = FlakyBackend.open

        def slow_open(self: FlakyBackend) -> None:
            connecting.set()
            go_on.wait(10)
            open_at_last(self)

        monkeypatch.setattr(FlakyBackend, "open", slow_open)
        backend.break_connection()
        join = in_thread(count, session)
        assert connecting.wait(10)
        session.close()
        go_on.set()
        with pytest.raises(NotConnected):
            join()
        assert not backend.is_open


def test_its_own_closing_is_no_trouble_to_tell_of(
    grid: Grid, caplog: pytest.LogCaptureFixture
) -> None:
    session = Session(grid.client())
    session.open()

    def closing(_: object) -> None:
        session.close()
        raise BrokerUnavailable("it was closed")

    with pytest.raises(NotConnected):
        session.call(closing)
    assert caplog.records == []
