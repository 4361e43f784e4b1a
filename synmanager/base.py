"""Operators: what a Director or a TTP imports.

The phase modules (``preprocess``, ``train``, ``evaluate``, ``completed``) only fill in names;
everything that an operator does is here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from synmanager import config
from synmanager.abstract import AbstractOperator
from synmanager.backends.base import DeadLetter, ExchangeSpec, QueueBackend, QueueSpec
from synmanager.backends.registry import create_backend
from synmanager.callbacks import Callback, adapt
from synmanager.errors import ConfigurationError, InvalidJob, NotConnected
from synmanager.message import Message, Rank, decode, dump, encode, new_id
from synmanager.phases import Phase
from synmanager.runner import Handler, Runner
from synmanager.session import Session
from synmanager.settings import load_settings

__all__ = ["BaseOperator", "ConsumerOperator", "ProducerOperator"]

T = TypeVar("T")
Self = TypeVar("Self", bound="BaseOperator")

_NOT_CONNECTED = "the operator is not connected; call connect() first"


class BaseOperator(AbstractOperator):
    """A connection to the message exchange, and the names that it uses there.

    Args:
        host: where the broker is; by default the environment's, else localhost.
        port: by default the environment's, else the broker's own.
        url: the whole address, instead of ``SYNMANAGER_BACKEND``.
        lease: seconds after which a dead worker's job is free again.
        max_attempts: how often a failing job is started before it becomes a dead letter.

    Raises:
        ConfigurationError: a setting is wrong, or the broker's driver is not installed.

    Attributes:
        host, port: as given; read again at :meth:`connect`.
        exchange_name, exchange_type, routing_key, durability: names on the broker. They may be
            set until :meth:`connect`.
        features: what the chosen broker can and cannot do.
    """

    #: Set by the four phases' operators; a bare operator belongs to none.
    phase: Phase | None = None

    def __init__(
        self,
        host: str | None = None,
        port: int | str | None = None,
        *,
        url: str | None = None,
        lease: float | None = None,
        max_attempts: int | None = None,
    ) -> None:
        self._settings = load_settings(host, port, url=url, lease=lease, max_attempts=max_attempts)
        # Made here too, so that a wrong setting shows now and not at connect().
        self.features = create_backend(self._settings.address).features
        self.host: str = self._settings.address.host or "localhost"
        self.port = self._settings.address.port if port is None else port
        self.exchange_name = config.EXCHANGE_NAME
        self.exchange_type = config.EXCHANGE_TYPE
        self.routing_key = "default"
        self.durability = True
        if self.phase is not None:
            self.exchange_name = self.phase.exchange.name
            self.exchange_type = self.phase.exchange.type
            self.routing_key = self.phase.routing_key
        self._session: Session | None = None
        self._native: dict[str, Any] = {}

    def connect(self) -> None:
        """Connect, and make sure that the exchange and the queue exist. No-op if connected.

        Raises:
            BrokerUnavailable: nobody answers.
            AccessRefused: wrong credentials, virtual host or certificate.
            TopologyError: something else has the exchange's or the queue's name.
        """
        if self._session is not None:
            return
        settings = self._settings.at(self.host, self.port)
        session = Session(create_backend(settings.address), settings.reconnect)
        try:
            session.open(*self._specs())
        except BaseException:
            session.close()
            raise
        self._session = session

    def disconnect(self) -> None:
        """Disconnect, in bounded time even if the broker is frozen. No-op if not connected.

        A consumer's callback may call it: its job is settled first.
        """
        for end in (self._native.pop("channel", None), self._native.pop("connection", None)):
            if end is not None and end.is_open:
                end.close()
        session, self._session = self._session, None
        if session is not None:
            self._close(session)

    def is_connected(self) -> bool:
        """Whether :meth:`connect` was called and :meth:`disconnect` was not."""
        return self._session is not None

    @property
    def connection(self) -> Any:
        """The client library's connection: pika's, on RabbitMQ. None when not connected.

        It is one of its own, made when first asked for, and belongs to the caller's thread.
        """
        return self._own("connection", 0)

    @connection.setter
    def connection(self, connection: Any) -> None:
        self._native["connection"] = connection

    @property
    def channel(self) -> Any:
        """The client library's channel on :attr:`connection`. None when not connected."""
        return self._own("channel", 1)

    @channel.setter
    def channel(self, channel: Any) -> None:
        self._native["channel"] = channel

    def create_message(self, run_kwarg: Mapping[str, Any]) -> str:
        """Write a job as it goes over the wire: JSON, keys sorted, ``str()`` of the unknown.

        Raises:
            InvalidJob: it cannot be written so that every reader can read it.
        """
        return dump(run_kwarg, self._settings.max_bytes)

    def parse_message(self, message: str | bytes) -> dict[str, Any]:
        """Read a job that came over the wire.

        Raises:
            Undecodable: it is not a JSON object.
        """
        body = message.encode("utf-8", "surrogatepass") if isinstance(message, str) else message
        return decode(body, self._settings.max_bytes)

    def process(self, /, **kwargs: Any) -> Any:
        """Submit a job; only producers can."""
        raise NotImplementedError(f"{type(self).__name__} does not submit jobs; use a producer")

    def delete(self, job_id: str) -> bool:
        """Remove a job of this operator's queue that has not started.

        Returns:
            False if no such job is waiting: it has started, is done, or never was.

        Raises:
            Unsupported: the broker cannot find a job by its id, as RabbitMQ cannot.
        """
        session = self._connected()
        queue = self._queue_name()
        return session.call(lambda backend: backend.delete(queue, job_id))

    def __enter__(self: Self) -> Self:
        self.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.disconnect()

    def __repr__(self) -> str:
        state = "connected" if self.is_connected() else "not connected"
        scheme = self._settings.address.scheme
        return f"<{type(self).__name__} {scheme}://{self.host} {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} holds a connection and cannot be pickled; make one in the "
            "other process, or use the 'fork' start method of multiprocessing"
        )

    def _connected(self) -> Session:
        if self._session is None:
            raise NotConnected(_NOT_CONNECTED)
        return self._session

    def _close(self, session: Session) -> None:
        session.close()

    def _exchange(self) -> ExchangeSpec:
        return ExchangeSpec(self.exchange_name, self.exchange_type, self.durability)

    def _specs(self) -> list[ExchangeSpec | QueueSpec]:
        # A producer declares its phase's queue too: a job submitted before the first consumer
        # ever came must have somewhere to wait.
        if self.phase is not None and self.routing_key == self.phase.routing_key:
            return [QueueSpec(self.phase.queue, self._exchange(), self.routing_key)]
        return [self._exchange()]

    def _queue_name(self) -> str:
        if self.phase is None:
            raise ConfigurationError("this operator has no queue; use a phase's operator")
        return self.phase.queue

    def _own(self, name: str, index: int) -> Any:
        if name not in self._native and self._session is not None:
            both = self._session.call(lambda backend: backend.native())
            self._native.setdefault("connection", both[0])
            self._native.setdefault("channel", both[1])
        return self._native.get(name)


class ProducerOperator(BaseOperator):
    """Submits jobs."""

    def process(self, /, **kwargs: Any) -> str:
        """Submit one job and return its JSON, once the broker has accepted it.

        Raises:
            NotConnected, InvalidJob, Unroutable, PublishRefused: nothing was sent or kept.
            BrokerUnavailable: the broker went away and did not come back in time.
        """
        session = self._connected()
        message = self.create_message(kwargs)
        self._publish(session, [Message(message.encode("ascii"))])
        return message

    def publish_message(self, message: str) -> None:
        """Publish a message that is already written; see :meth:`process` for what it raises."""
        session = self._connected()
        try:
            body = message.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidJob("the message holds a lone surrogate") from None
        limit = self._settings.max_bytes
        if len(body) > limit:
            raise InvalidJob(f"the message is {len(body):,} bytes, over the limit of {limit:,}")
        self._publish(session, [Message(body)])

    def submit(
        self,
        job: Mapping[str, Any],
        *,
        priority: Rank | str = Rank.NORMAL,
        delay: float = 0.0,
        job_id: str | None = None,
    ) -> str:
        """Submit one job and return its id.

        Args:
            job: the payload. None of its keys is taken for an option.
            priority: "high", "normal" or "low"; strictly high first within the phase.
            delay: seconds until it may run.
            job_id: by default a new one. Where ``Features.deduplicates``, a job whose id is
                still queued or running is not queued a second time.

        Raises:
            as :meth:`process`.
        """
        session = self._connected()
        message = Message(
            encode(job, self._settings.max_bytes),
            id=new_id() if job_id is None else _valid_id(job_id),
            rank=Rank.parse(priority),
        )
        self._publish(session, [message], delay)
        return message.id

    def submit_many(
        self,
        jobs: Iterable[Mapping[str, Any]],
        *,
        priority: Rank | str = Rank.NORMAL,
        delay: float = 0.0,
    ) -> list[str]:
        """Submit many jobs at once, in order, and return their ids.

        Every job is checked before the first is sent. Many times faster than one by one,
        because the broker's confirmations are awaited together.
        """
        session = self._connected()
        rank = Rank.parse(priority)
        now = time.time()
        limit = self._settings.max_bytes
        messages = [Message(encode(job, limit), rank=rank, submitted_at=now) for job in jobs]
        self._publish(session, messages, delay)
        return [message.id for message in messages]

    def _publish(self, session: Session, messages: list[Message], delay: float = 0.0) -> None:
        if not isinstance(delay, int | float) or not 0 <= delay < float("inf"):
            raise InvalidJob(f"delay must be zero or more seconds, not {delay!r}")
        session.publish(self.exchange_name, self.routing_key, messages, delay=delay)


class ConsumerOperator(BaseOperator):
    """Takes jobs from one queue and runs them.

    Attributes:
        queue: where from. Like the other names, it may be set until :meth:`connect`, or later.
        auto_ack: acknowledge a job before it runs. A crash then loses it; False unless set.
    """

    def __init__(
        self,
        host: str | None = None,
        port: int | str | None = None,
        *,
        url: str | None = None,
        lease: float | None = None,
        max_attempts: int | None = None,
    ) -> None:
        super().__init__(host, port, url=url, lease=lease, max_attempts=max_attempts)
        self.queue: str | None = None if self.phase is None else self.phase.queue
        self.auto_ack = False
        self._runner: Runner | None = None

    def connect(self) -> None:
        super().connect()
        if self._runner is None:
            self._runner = Runner(self._connected(), self._settings)

    def listen_message(
        self,
        process_function: Callback | None = None,
        *,
        process_callback: Callback | None = None,
        max_jobs: int | None = None,
        idle_timeout: float | None = None,
    ) -> int:
        """Run jobs as they come, one at a time in this thread, until told to stop.

        SIGTERM, SIGINT and :meth:`stop` end it after the job at hand; see ``SYNMANAGER_GRACE``.

        Args:
            process_function: called as ``f(**kwargs)``, or as ``f(kwargs, host)`` if these are
                the names of its first two parameters.
            process_callback: called as ``f(kwargs, host)``.
            max_jobs: return after this many jobs.
            idle_timeout: return after this many seconds without a job.

        Returns:
            How many jobs were run.

        Raises:
            NotConnected, InvalidCallback: before anything is taken.
            BrokerUnavailable: the broker stayed away longer than ``SYNMANAGER_RECONNECT``.
        """
        runner, handlers = self._prepare(process_function, process_callback)
        return runner.run(
            handlers,
            max_jobs=max_jobs,
            idle_timeout=idle_timeout,
            acknowledge_first=self.auto_ack,
        )

    def poll_message(
        self,
        process_function: Callback | None = None,
        *,
        process_callback: Callback | None = None,
    ) -> Any:
        """Run one job if there is one, and return what the callback returned.

        Returns:
            None when the queue is empty, or when the callback failed: the error is logged and
            the job is retried later, or ends as a dead letter.
        """
        runner, handlers = self._prepare(process_function, process_callback)
        return runner.run_one(handlers, acknowledge_first=self.auto_ack)

    def stop(self) -> None:
        """End :meth:`listen_message` after the job at hand; from any thread or the callback."""
        if self._runner is not None:
            self._runner.stop()

    def check_message_count(self) -> int:
        """How many jobs are ready to be taken."""
        return self._on_queue(lambda backend, queue: backend.count(queue).ready)

    def purge(self) -> int:
        """Remove every job that waits in the queue; return how many."""
        return self._on_queue(lambda backend, queue: backend.purge(queue))

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """The oldest dead letters of the queue, with their reasons."""
        return self._on_queue(lambda backend, queue: backend.dead_letters(queue, limit))

    def redrive(self, limit: int = 1_000_000) -> int:
        """Put dead letters back in the queue, oldest first, as first attempts; return how many."""
        return self._on_queue(lambda backend, queue: backend.redrive(queue, limit))

    def purge_dead_letters(self) -> int:
        """Remove the queue's dead letters for good; return how many."""
        return self._on_queue(lambda backend, queue: backend.purge_dead_letters(queue))

    def generate_callback(
        self, process_function: Callback
    ) -> Callable[[Any, Any, Any, bytes], None]:
        """Make a callback for ``channel.basic_consume``, for callers that consume themselves.

        It runs and settles one delivery by the same policy as :meth:`listen_message`. With
        :attr:`auto_ack` it settles nothing: the broker has done so.
        """
        handler = adapt(process_function, None, self.host)

        def message_callback(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            runner, session = self._runner, self._connected()
            assert runner is not None
            delivery = session.call(
                lambda backend: backend.adopt(
                    self._queue_name(), channel, method, properties, body, settled=self.auto_ack
                )
            )
            if delivery is not None:
                runner.handle(delivery, handler)

        return message_callback

    def _prepare(
        self, process_function: Callback | None, process_callback: Callback | None
    ) -> tuple[Runner, dict[str, Handler]]:
        if self._runner is None:
            raise NotConnected(_NOT_CONNECTED)
        handler = adapt(process_function, process_callback, self.host)
        # Again: the names may have been set since connect().
        self._connected().declare(*self._specs())
        return self._runner, {self._queue_name(): handler}

    def _close(self, session: Session) -> None:
        runner, self._runner = self._runner, None
        (runner or session).close()

    def _on_queue(self, operation: Callable[[QueueBackend, str], T]) -> T:
        session = self._connected()
        queue = self._queue_name()
        return session.call(lambda backend: operation(backend, queue))

    def _specs(self) -> list[ExchangeSpec | QueueSpec]:
        if self.queue is None:
            return [self._exchange()]
        return [QueueSpec(self.queue, self._exchange(), self.routing_key, self.durability)]

    def _queue_name(self) -> str:
        if self.queue is None:
            raise ConfigurationError("the consumer has no queue; set .queue, or use a phase's")
        return self.queue


def _valid_id(job_id: str) -> str:
    # RabbitMQ's message-id holds 255 bytes, and a result's id is its job's and a little more.
    if not isinstance(job_id, str) or not 0 < len(job_id.encode("utf-8", "replace")) <= 200:
        raise InvalidJob(f"job_id must be a string of 1 to 200 bytes, not {job_id!r}")
    return job_id
