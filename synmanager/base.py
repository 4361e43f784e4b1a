"""Operators: what a Director or a TTP imports.

The phase modules (``preprocess``, ``train``, ``evaluate``, ``completed``) only fill in names;
everything that an operator does is here.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from synmanager import config
from synmanager.abstract import AbstractOperator
from synmanager.backends.base import DeadLetter, Delivery, ExchangeSpec, QueueBackend, QueueSpec
from synmanager.backends.native import NativeBackend
from synmanager.backends.registry import create_backend
from synmanager.engine import forks
from synmanager.engine.callbacks import Callback, adapt
from synmanager.engine.runner import Handler, Runner
from synmanager.engine.session import Session
from synmanager.errors import (
    ConfigurationError,
    InvalidJob,
    NotConnected,
    NotPublished,
    Unsupported,
)
from synmanager.jobs import Jobs
from synmanager.journal.actions import acted
from synmanager.journal.events import SWEEP, Event, chunks
from synmanager.journal.recorder import FAREWELL, Recorder
from synmanager.message import (
    RANK_NAMES,
    TIME_LIMIT,
    Message,
    Priority,
    Rank,
    decode,
    dump,
    encode,
    new_id,
    new_ids,
)
from synmanager.phases import COMPLETED, Phase
from synmanager.settings import (
    LONGEST_TIME_LIMIT,
    SHORTEST_TIME_LIMIT,
    in_seconds,
    load_settings,
)
from synmanager.sweep import Sweep
from synmanager.text import quoted, shown

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = ["BaseOperator", "ConsumerOperator", "ProducerOperator"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Self = TypeVar("Self", bound="BaseOperator")

#: AMQP's limit for a name, in bytes. A queue's is shorter, for its dead letters' queue's sake.
_LONGEST_NAME, _LONGEST_QUEUE = 255, 250

_NOT_CONNECTED = "the operator is not connected; call connect() first"


class BaseOperator(AbstractOperator):
    """A connection to the message exchange, and the names that it uses there.

    Attributes:
        host, port: as given; read again at :meth:`connect`.
        exchange_name, exchange_type, routing_key, durability: names on the broker. They may be
            set until :meth:`connect`.
        features: what the chosen broker can and cannot do.

    Example:
        >>> BaseOperator(url="memory").features.durable
        False
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
        """Take the settings, without any I/O.

        Args:
            host: where the broker is; by default the environment's, else localhost.
            port: by default the environment's, else the broker's own.
            url: the whole address, instead of ``SYNMANAGER_BACKEND``.
            lease: seconds after which a dead worker's job is free again.
            max_attempts: how often a failing job is started before it becomes a dead letter.

        Raises:
            ConfigurationError: a setting is wrong, or the broker's driver is not installed.
        """
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
        self._recorder: Recorder | None = None
        self._native: dict[str, Any] = {}
        self._parents: dict[str, Any] = {}
        self._generation = forks.generation()  # of the process that they are for
        self._warned: set[str] = set()

    def connect(self) -> None:
        """Connect, and make sure that the exchange and the queue exist. No-op if connected.

        Raises:
            BrokerUnavailable: nobody answers.
            AccessRefused: wrong credentials, virtual host or certificate.
            TopologyError: something else has the exchange's or the queue's name.
            ConfigurationError: host, port or a name, set since, cannot be; before any I/O.
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
        if settings.journal and session.backend.features.journal:
            self._recorder = Recorder(lambda: session.backend)

    def disconnect(self) -> None:
        """Disconnect, in bounded time even if the broker is frozen. No-op if not connected.

        A consumer's callback may call it: its job is settled first.
        """
        self._forget_a_parent_s()
        for end in (self._native.pop("channel", None), self._native.pop("connection", None)):
            if end is not None and end.is_open:
                end.close()
        session, self._session = self._session, None
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.flush(FAREWELL)
            recorder.close()
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

        Where the broker cannot find a job by its id, as RabbitMQ cannot, the worker that takes it
        removes it instead, see :meth:`synmanager.Jobs.cancel`.

        Raises:
            Unsupported: neither can be, as there is no journal.
            InvalidJob: no job can have such an id.
        """
        session = self._connected()
        queue = self._queue_name()
        _valid_id(job_id)
        if not session.backend.features.deletes and self._recorder is not None:
            jobs = Jobs.on(session, self._recorder.mine())
            waits = jobs.is_waiting(job_id, queue)
            jobs.cancel(job_id)
            return waits
        found = session.call(lambda backend: backend.delete(queue, job_id))
        if found:
            self._say("job.deleted", f"{queue}/{job_id}", {"phase": queue, "id": job_id})
        return found

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
        return f"<{type(self).__name__} {scheme}://{shown(self.host)} {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} holds a connection and cannot be pickled; make one in the "
            "other process, or use the 'fork' start method of multiprocessing"
        )

    def _say(self, kind: str, subject: str, data: dict[str, Any]) -> None:
        """Tell observers."""
        recorder = self._recorder
        if recorder is not None:
            recorder.put(Event(kind, recorder.mine(), time.time(), subject, data))

    def _connected(self) -> Session:
        if self._session is None:
            raise NotConnected(_NOT_CONNECTED)
        return self._session

    def _close(self, session: Session) -> None:
        session.close()

    def _exchange(self) -> ExchangeSpec:
        return ExchangeSpec(
            _valid_name("exchange_name", self.exchange_name),
            _valid_name("exchange_type", self.exchange_type),
            self.durability,
        )

    def _specs(self) -> list[ExchangeSpec | QueueSpec]:
        # A producer declares its phase's queue too: a job submitted before the first consumer
        # ever came must have somewhere to wait.
        if self.phase is not None and self.routing_key == self.phase.routing_key:
            return [QueueSpec(self.phase.queue, self._exchange(), self.routing_key)]
        _valid_name("routing_key", self.routing_key, least=0)
        return [self._exchange()]

    def _queue_name(self) -> str:
        if self.phase is None:
            raise ConfigurationError("this operator has no queue; use a phase's operator")
        return self.phase.queue

    def _own(self, name: str, index: int) -> Any:
        self._forget_a_parent_s()
        if name not in self._native and self._session is not None:
            both = self._session.call(
                lambda backend: (
                    backend.native() if isinstance(backend, NativeBackend) else (backend, backend)
                )
            )
            self._native.setdefault("connection", both[0])
            self._native.setdefault("channel", both[1])
        return self._native.get(name)

    def _forget_a_parent_s(self) -> None:
        """In a fork, touch none of the client library's objects: their socket is the parent's."""
        if self._generation != forks.generation():
            self._parents, self._native = self._native, {}  # kept: its end would say goodbye
            self._generation = forks.generation()


class ProducerOperator(BaseOperator):
    """Submits jobs, of the phase that it is made for, see ``synmanager.train`` and the others.

    Attributes:
        repeats: how many of those submitted so far were not queued, as jobs with the same ids
            wait, are delayed or run already; see ``Features.deduplicates``.

    Example:
        >>> from synmanager.train import TrainProducerOperator
        >>> with TrainProducerOperator(url="memory") as producer:
        ...     producer.submit({"lr": 0.1}, priority="high", delay=60, job_id="first")
        'first'
    """

    repeats = 0

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

    def publish_message(self, message: str | bytes) -> None:
        """Publish a message that is already written; see :meth:`process` for what it raises.

        It is sent as it is: what is no JSON object ends as a dead letter at its reader.
        """
        session = self._connected()
        if not isinstance(message, str | bytes):
            raise InvalidJob(f"a message is JSON as a str, not {quoted(message)}")
        try:
            body = message.encode("utf-8") if isinstance(message, str) else message
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
        priority: Priority = Rank.NORMAL,
        delay: float | timedelta = 0.0,
        job_id: str | None = None,
        time_limit: float | timedelta | None = None,
    ) -> str:
        """Submit one job and return its id.

        Args:
            job: the payload. None of its keys is taken for an option. It arrives as it is given;
                ``docs/values.md`` says what that means.
            priority: "high", "normal" or "low"; strictly high first within the phase.
            delay: seconds until it may run, or a timedelta; ``Features.longest_delay`` at most.
            job_id: by default a new one. Where ``Features.deduplicates``, a job whose id is
                still queued, delayed or running in the same queue is not queued a second time,
                whoever submitted the first; a warning says so, once.
            time_limit: seconds for which it may run, 0.1 to 30 days, or a timedelta; by default
                its worker's.

        Raises:
            as :meth:`process`, and InvalidJob for a value that JSON has no form for.
        """
        session = self._connected()
        message = Message(
            encode(job, self._settings.max_bytes),
            id=new_id() if job_id is None else _valid_id(job_id),
            rank=Rank.parse(priority),
            headers=_headers(time_limit),
        )
        repeats = self._publish(session, [message], delay)
        if repeats:
            self._tell_of_repeats(repeats, [message])
        return message.id

    def submit_many(
        self,
        jobs: Iterable[Mapping[str, Any]],
        *,
        priority: Priority = Rank.NORMAL,
        delay: float | timedelta = 0.0,
        job_ids: Iterable[str] | None = None,
        time_limit: float | timedelta | None = None,
    ) -> list[str]:
        """Submit many jobs at once, in order, and return their ids.

        Every job is checked before the first is sent. Many times faster than one by one,
        because the broker's confirmations are awaited together.

        If it fails midway, some are queued and some are not. The error is then a
        ``NotPublished``: ``[message.id for message in error.unconfirmed]`` are the ids of those
        that were not accepted, as far as is known. Where ``Features.deduplicates``, the same call
        with the same ``job_ids`` may simply be repeated: what is still there is not queued twice.

        Args:
            jobs, priority, delay, time_limit: as for :meth:`submit`, the same for all.
            job_ids: as many different ids as there are jobs; by default new ones.

        Raises:
            NotConnected, InvalidJob: nothing was sent; ``jobs[17]: …`` says which is wrong.
            PublishRefused, Unroutable, PublishInterrupted: what is ``unconfirmed`` was not
                accepted, all the others were. Of what a broker that went away and did not come
                back in time left unconfirmed, some may be queued all the same.
        """
        session = self._connected()
        rank = Rank.parse(priority)
        headers = _headers(time_limit)
        now = time.time()
        bodies = self._bodies(jobs)
        ids = new_ids(len(bodies)) if job_ids is None else _valid_ids(job_ids, len(bodies))
        messages = [
            Message(body, id=id, rank=rank, submitted_at=now, headers=headers)
            for body, id in zip(bodies, ids, strict=True)
        ]
        repeats = self._publish(session, messages, delay)
        if repeats:
            self._tell_of_repeats(repeats, messages)
        return [message.id for message in messages]

    def sweep(
        self,
        jobs: Iterable[Mapping[str, Any]],
        name: str | None = None,
        *,
        priority: Priority = Rank.NORMAL,
        time_limit: float | timedelta | None = None,
    ) -> Sweep:
        """Submit many jobs that belong together, and follow them to their ends.

        Args:
            jobs, priority, time_limit: as for :meth:`submit_many`.
            name: 1 to 100 letters, digits, ``-`` or ``_``, by which ``Sweep.attach`` finds it; by
                default a new one. Where the submission of a sweep of this name was cut off, as
                its Director died, it is finished, if the jobs are as many: those of which
                something was heard are not submitted again, nor, where
                ``Features.deduplicates``, those that wait.

        Raises:
            as :meth:`submit_many`; InvalidJob: there is a sweep of this name; Unsupported: the
            broker keeps no journal, or it is switched off.
        """
        session, phase = self._connected(), self.phase
        if phase is None or self.routing_key != phase.routing_key or self._recorder is None:
            raise Unsupported(
                "a sweep needs a phase's own producer and the journal: a broker that keeps one, "
                "without SYNMANAGER_JOURNAL=off, here and for the workers"
            )
        rank, headers = Rank.parse(priority), _headers(time_limit)
        bodies = self._bodies(jobs)
        sweep = Sweep.begin(
            Session(create_backend(session.backend.address), self._settings.reconnect),
            phase,
            len(bodies),
            name,
            headers.get(TIME_LIMIT),
        )
        try:
            headers[SWEEP] = sweep.name
            at = sweep.submitted_at
            messages = [
                Message(body, id=id, rank=rank, submitted_at=at, headers=headers)
                for body, id in zip(bodies, sweep.ids(), strict=True)
                if not sweep.knows(id)
            ]
            self._publish(session, messages)
            sweep.is_submitted()
        except BaseException:
            sweep.close()
            raise
        return sweep

    def _bodies(self, jobs: Iterable[Mapping[str, Any]]) -> list[bytes]:
        """Jobs as they go over the wire, each checked before the first is sent."""
        limit = self._settings.max_bytes
        bodies: list[bytes] = []
        for job in jobs:
            try:
                bodies.append(encode(job, limit))
            except InvalidJob as error:
                raise InvalidJob(f"jobs[{len(bodies)}]: {error}") from error.__cause__
        return bodies

    def _publish(
        self, session: Session, messages: list[Message], delay: float | timedelta = 0.0
    ) -> int:
        exchange = _valid_name("exchange_name", self.exchange_name)
        key = _valid_name("routing_key", self.routing_key, least=0)
        seconds = in_seconds(delay)
        if not 0 <= seconds < float("inf"):
            raise InvalidJob(f"delay must be zero or more seconds, not {quoted(delay)}")
        longest = session.backend.features.longest_delay
        if seconds > longest:
            self._warn_once(
                "a job is delayed by %s s, the longest that this broker can do, and not by %s s",
                f"{longest:,.0f}",
                f"{seconds:,.0f}",
            )
            seconds = longest
        try:
            repeats = session.publish(exchange, key, messages, delay=seconds)
        except NotPublished as error:
            lost = {message.id for message in error.unconfirmed}
            self._tell_of([each for each in messages if each.id not in lost], key, seconds)
            raise
        if repeats < len(messages):
            self._tell_of(messages, key, seconds, repeats > 0)
        return repeats

    def _tell_of(
        self, messages: list[Message], key: str, delay: float, repeats: bool = False
    ) -> None:
        """Tell observers of what was queued; of jobs, and not of results for the archive."""
        phase, recorder = self.phase, self._recorder
        if recorder is None or phase is None or key != phase.routing_key:
            return
        if phase.queue == COMPLETED.queue:
            return
        for ids in chunks([message.id for message in messages]):
            first = messages[0]
            data = {
                "phase": phase.queue,
                "ids": ids,
                "rank": RANK_NAMES[first.rank],
                "submitted_at": first.submitted_at,
                "delay": delay,
            }
            if repeats:
                data["repeats"] = True
            if SWEEP in first.headers:
                data["sweep"] = first.headers[SWEEP]
            recorder.put(Event("job.submitted", recorder.mine(), time.time(), phase.queue, data))

    def _tell_of_repeats(self, repeats: int, messages: list[Message]) -> None:
        self.repeats += repeats
        some = ", ".join(quoted(message.id) for message in messages[:5])
        self._warn_once(
            "%d of %d jobs sent with %s were not queued, as jobs with the same ids are there "
            "already, waiting, delayed or running: %s%s. All who submit to one queue of one broker "
            "share its ids, whatever their project",
            repeats,
            len(messages),
            quoted(self.routing_key),
            some,
            ", ..." if len(messages) > 5 else "",
        )

    def _warn_once(self, text: str, *values: object) -> None:
        if text not in self._warned:
            self._warned.add(text)
            logger.warning(f"{text}. Said once for each operator", *values)


class ConsumerOperator(BaseOperator):
    """Takes jobs from one queue and runs them.

    Attributes:
        queue: where from. Like the other names, it may be set until :meth:`connect`, or later.
        auto_ack: acknowledge a job before it runs. A crash then loses it; False unless set.

    Example:
        >>> from synmanager.train import TrainConsumerOperator, TrainProducerOperator
        >>> with TrainProducerOperator(url="memory") as producer:
        ...     job_id = producer.submit({"lr": 0.1})
        >>> with TrainConsumerOperator(url="memory") as consumer:
        ...     consumer.listen_message(lambda lr: print("rate", lr), max_jobs=1)
        rate 0.1
        1
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
            self._runner = Runner(
                self._connected(), self._settings, only_deaths=self.phase is COMPLETED
            )

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
        with runner.shutdown() as shutdown:
            return runner.run(
                handlers,
                shutdown,
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
        runner = self._runner
        if runner is not None:
            runner.stop()

    def check_message_count(self) -> int:
        """How many jobs are ready to be taken."""
        return self._on_queue(lambda backend, queue: backend.count(queue).ready)

    def purge(self) -> int:
        """Remove every job that waits in the queue; return how many."""
        return self._act(
            "purge_queue",
            lambda backend, queue: backend.purge(queue),
            delayed=self._connected().backend.features.counts_delayed,
        )

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """The oldest dead letters of the queue, with their reasons."""
        return self._on_queue(lambda backend, queue: backend.dead_letters(queue, limit))

    def redrive(self, limit: int = 1_000_000) -> int:
        """Put dead letters back in the queue, oldest first, as first attempts; return how many."""
        return self._act("redrive", lambda backend, queue: backend.redrive(queue, limit))

    def purge_dead_letters(self) -> int:
        """Remove the queue's dead letters for good; return how many."""
        return self._act("purge", lambda backend, queue: backend.purge_dead_letters(queue))

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
            queue = self._queue_name()

            def adopt(backend: QueueBackend) -> Delivery | None:
                if not isinstance(backend, NativeBackend):
                    raise Unsupported(
                        f"{backend.address.scheme} has no consumer callbacks of its own"
                    )
                return backend.adopt(
                    queue, channel, method, properties, body, settled=self.auto_ack
                )

            delivery = session.call(adopt)
            if delivery is not None:
                runner.handle(delivery, handler)

        return message_callback

    def _prepare(
        self, process_function: Callback | None, process_callback: Callback | None
    ) -> tuple[Runner, dict[str, Handler]]:
        runner = self._runner  # another thread may disconnect meanwhile
        if runner is None:
            raise NotConnected(_NOT_CONNECTED)
        handler = adapt(process_function, process_callback, self.host)
        # Again: the names may have been set since connect().
        self._connected().declare(*self._specs())
        return runner, {self._queue_name(): handler}

    def _close(self, session: Session) -> None:
        runner, self._runner = self._runner, None
        (runner or session).close()

    def _act(self, kind: str, operation: Callable[[QueueBackend, str], int], **about: Any) -> int:
        """Do something to jobs, and tell observers."""
        at, number, recorder = time.time(), self._on_queue(operation), self._recorder
        if recorder is not None:
            source, queue = recorder.mine(), self._queue_name()
            for event in acted(kind, source, at, number, queue=queue, **about):
                recorder.put(event)
        return number

    def _on_queue(self, operation: Callable[[QueueBackend, str], T]) -> T:
        session = self._connected()
        queue = self._queue_name()
        return session.call(lambda backend: operation(backend, queue))

    def _specs(self) -> list[ExchangeSpec | QueueSpec]:
        if self.queue is None:
            return [self._exchange()]
        key = _valid_name("routing_key", self.routing_key, least=0)
        return [QueueSpec(self._queue_name(), self._exchange(), key, self.durability)]

    def _queue_name(self) -> str:
        if self.queue is None:
            raise ConfigurationError("the consumer has no queue; set .queue, or use a phase's")
        return _valid_name("queue", self.queue, _LONGEST_QUEUE)


def _valid_id(job_id: str) -> str:
    # RabbitMQ's message-id holds 255 bytes, and a result's id is its job's and a little more.
    if not isinstance(job_id, str) or not 0 < _bytes(job_id) <= 200:
        raise InvalidJob(f"job_id must be a string of 1 to 200 bytes, not {quoted(job_id)}")
    return job_id


def _valid_ids(job_ids: Iterable[str], count: int) -> list[str]:
    if isinstance(job_ids, str | bytes):
        raise InvalidJob("job_ids must be several strings, one for each job, not one string")
    ids = [_valid_id(job_id) for job_id in islice(job_ids, count + 1)]
    if len(ids) != count:
        number = "more" if len(ids) > count else f"{len(ids):,}"
        raise InvalidJob(f"job_ids must be as many as the jobs, {count:,}, not {number}")
    twice = [job_id for job_id, times in Counter(ids).items() if times > 1]
    if twice:
        raise InvalidJob(f"job_ids must differ from each other; {quoted(twice[0])} comes twice")
    return ids


def _valid_name(setting: str, name: object, most: int = _LONGEST_NAME, *, least: int = 1) -> str:
    if isinstance(name, str) and name.isascii() and least <= len(name) <= most:
        return name  # told at once, as every publish asks
    if not isinstance(name, str) or not least <= _bytes(name) <= most:
        raise ConfigurationError(
            f"{setting} must be a string of {least} to {most} bytes in UTF-8, not {quoted(name)}"
        )
    return name


def _bytes(text: str) -> int:
    """How long a text is in UTF-8; -1 if that cannot write it."""
    try:
        return len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        return -1


def _headers(time_limit: float | timedelta | None) -> dict[str, str]:
    if time_limit is None:
        return {}
    seconds = in_seconds(time_limit)
    if not SHORTEST_TIME_LIMIT <= seconds <= LONGEST_TIME_LIMIT:
        limits = f"{SHORTEST_TIME_LIMIT:g} to {LONGEST_TIME_LIMIT:,.0f} seconds"
        raise InvalidJob(f"time_limit must be from {limits}, not {quoted(time_limit)}")
    return {TIME_LIMIT: repr(seconds)}
