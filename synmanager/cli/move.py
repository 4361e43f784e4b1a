"""``synmanager move``: all jobs of one broker to another."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import click

from synmanager.backends.base import DeadLetter, Delivery, ExchangeSpec, QueueBackend, QueueSpec
from synmanager.cli.broker import are_one_broker, connected, refuse_what_ends_here
from synmanager.cli.output import as_json, json_option
from synmanager.cli.queues import chosen, queue_options, spec_of
from synmanager.errors import LeaseLost, TopologyError
from synmanager.message import Message
from synmanager.phases import COMPLETED
from synmanager.settings import load_settings
from synmanager.terminal import complain
from synmanager.words import plural

__all__ = ["move"]

#: By which a single queue is reached, whatever else is bound to its own exchange.
_WAY = "SynMQ_move"

#: Seconds: no message is in hand for longer than its way takes, and a killed move's come back soon.
_LEASE = 10.0

#: The id of what is put there for a moment, to see whether it is here: a killed move's is found
#: by the next one. A day, in seconds, as nobody should run it.
_PROBE, _PROBE_DELAY = "synmanager-move-probe", 86_400.0

#: Dead letters, and delayed messages, that are carried at a time.
_PAGE = 100


@dataclass
class _Carried:
    """What was carried out of a queue.

    Attributes:
        left: how many are there still, as they run or cannot be reached; None if nobody knows.
    """

    ready: int = 0
    delayed: int = 0
    dead: int = 0
    left: int | None = 0


@click.command()
@click.option("--from", "source", required=True, metavar="URL", help="Where the jobs are.")
@click.option("--to", "target", required=True, metavar="URL", help="Where they should be.")
@queue_options
@click.option(
    "--wait",
    type=click.FloatRange(0),
    default=0.0,
    metavar="SECONDS",
    help="Go on for that long with what becomes due, or comes back from a worker.",
)
@json_option
def move(
    source: str,
    target: str,
    phases: Sequence[str],
    subscribers: Sequence[str],
    wait: float,
    in_json: bool,
) -> None:
    """Carry all jobs from one broker to another.

    What is queued goes in its order, with ids and ranks; what is delayed for the rest of its
    delay; dead letters with all that they tell. A job leaves the one broker when the other has
    confirmed it: killed at any moment, nothing is lost, and the same command goes on. A job in
    hand at that moment may come twice to a broker that does not tell ids apart, as RabbitMQ.
    Attempts count anew, but for dead letters'. Stop the workers of the first broker before.

    Delayed jobs of RabbitMQ cannot be seen: --wait stays for those that become due.

    \b
    examples:
      synmanager move --from amqp://old.example/ --to amqp://new.example/
      synmanager move --from redis://localhost/0 --to sqlite:////data/jobs.db --phase train
      synmanager move --from amqp://localhost/ --to amqp://localhost/ranked --wait 600

    To have a queue made anew on the same broker (with ranks, or as a quorum queue), go by way of
    another: move it to sqlite:////tmp/parked.db, delete the queue, and move it back.
    """
    here, there = load_settings(url=source).address, load_settings(url=target).address
    if are_one_broker(here, there):
        # Where ids are told apart, each job would be taken for its own copy, and removed.
        click.get_current_context().fail("--from and --to are the same broker")
    refuse_what_ends_here(there)
    complain(f"from: {here.safe_url}")
    complain(f"to: {there.safe_url}")
    with (
        connected(source, say=False, lease=min(_LEASE, here.lease)) as origin,
        connected(target, say=False) as goal,
    ):
        names = _queues(origin, phases, subscribers)
        mover = _Mover(origin, goal, time.monotonic() + wait)
        carried: dict[str, _Carried] = {}
        for name in names:
            carried[name] = mover.move(name)
            if not in_json:
                print(_in_words(name, carried[name]), flush=True)
    if in_json:
        as_json({name: asdict(each) for name, each in carried.items()})
    if not names:
        complain("there are no queues to move")


def _queues(origin: QueueBackend, phases: Sequence[str], subscribers: Sequence[str]) -> list[str]:
    """The queues that are meant and are there."""
    everything = not (phases or subscribers)
    facts = origin.facts()
    if everything and facts.queues is None:
        complain("subscribers' queues are not listed here: go again with --subscriber for each")
    names = []
    for name in chosen(phases, subscribers, facts.queues if everything else None):
        try:
            origin.count(name)
        except TopologyError:
            if not everything:
                complain(f"there is no queue {name} here")
            continue
        names.append(name)
    return names


class _Mover:
    """Carries one queue after another.

    Args:
        until: by the monotonic clock, to go on with what becomes ready meanwhile.
    """

    def __init__(self, origin: QueueBackend, goal: QueueBackend, until: float) -> None:
        self._origin = origin
        self._goal = goal
        self._until = until
        self._is_another = False

    def move(self, queue: str) -> _Carried:
        """Carry what can be carried of a queue."""
        way = self._way(queue)
        self._refuse_itself(queue, way)
        carried = _Carried()
        carried.delayed = self._move_delayed(queue, way)
        carried.ready = self._move_ready(queue, way)
        carried.dead = self._move_dead(queue)
        counts = self._origin.count(queue)
        unseen = (counts.leased, counts.delayed)
        carried.left = None if None in unseen else sum(number or 0 for number in unseen)
        return carried

    def _way(self, queue: str) -> QueueSpec:
        """A route to this queue alone; a fanout would give a copy to each of its subscribers."""
        spec = spec_of(queue)
        if spec.exchange.name != COMPLETED.exchange.name:
            self._goal.declare(spec)
            return spec
        way = QueueSpec(queue, ExchangeSpec(_WAY, "topic"), queue)
        self._goal.declare(spec, way)
        return way

    def _refuse_itself(self, queue: str, way: QueueSpec) -> None:
        """Two addresses may be one broker, by a tunnel or a proxy, and tell nobody.

        Where ids are told apart, each job would be taken for its own copy, and removed.

        Raises:
            click.ClickException: what is put there is here.
        """
        if self._is_another or not (self._origin.features.deletes and self._goal.features.deletes):
            return
        probe = Message(b"{}", _PROBE)
        self._goal.publish(way.exchange.name, way.routing_key, [probe], delay=_PROBE_DELAY)
        try:
            is_here = self._origin.delete(queue, _PROBE)
        finally:
            self._goal.delete(queue, _PROBE)
        if is_here:
            raise click.ClickException("--from and --to are the same broker; nothing was moved")
        self._is_another = True

    def _move_ready(self, queue: str, way: QueueSpec) -> int:
        number = 0
        done: Delivery | None = None
        while True:
            try:
                delivery = self._next(queue, done)
            except LeaseLost:  # it comes again; of the two, the second is known by its id
                done = None
                continue
            if delivery is None:
                return number
            self._goal.publish(way.exchange.name, way.routing_key, [delivery.message])
            done = delivery
            number += 1

    def _next(self, queue: str, done: Delivery | None) -> Delivery | None:
        """The next one that is ready; waits for what a killed move held, and as long as told."""
        delivery = self._origin.receive([queue], 0.0, done)
        if delivery is not None:
            return delivery
        left = self._until - time.monotonic()
        if left <= 0 and self._origin.count(queue).leased:
            left = self._origin.address.lease + 0.5
        return self._origin.receive([queue], left) if left > 0 else None

    def _move_delayed(self, queue: str, way: QueueSpec) -> int:
        features = self._origin.features
        number = 0
        if not (features.shows_delayed and features.deletes):
            return number
        while page := self._origin.delayed(queue, _PAGE):
            for each in page:
                left = max(0.0, min(each.seconds, self._goal.features.longest_delay))
                self._goal.publish(way.exchange.name, way.routing_key, [each.message], delay=left)
            # What has become due meanwhile may have been taken; it runs twice then.
            gone = sum(self._origin.delete(queue, each.message.id) for each in page)
            number += gone
            if not gone:
                break
        return number

    def _move_dead(self, queue: str) -> int:
        if not (self._origin.features.mends_letters and self._goal.features.mends_letters):
            if self._origin.count(queue).dead:
                complain(f"the dead letters of {queue} stay: one of the brokers cannot pick any")
            return 0
        there = {_identity(each) for each in self._letters(self._goal, queue)}
        number = 0
        while page := self._origin.dead_letters(queue, _PAGE):
            new = [each for each in page if _identity(each) not in there]
            self._goal.add_letters(queue, new)
            there |= {_identity(each) for each in new}
            number += len(page)
            removed = self._origin.purge_letters(queue, {each.message.id for each in page})
            if not removed:
                complain(f"{plural(len(page), 'dead letter')} of {queue} cannot be removed here")
                break
        return number

    @staticmethod
    def _letters(broker: QueueBackend, queue: str) -> Iterator[DeadLetter]:
        yield from broker.dead_letters(queue, max(broker.count(queue).dead, 1))


def _identity(letter: DeadLetter) -> tuple[str, int, bytes]:
    """What tells a letter from others; brokers keep times to the millisecond."""
    return letter.message.id, round(letter.died_at * 100), letter.message.body


def _in_words(queue: str, carried: _Carried) -> str:
    text = f"{queue}: {carried.ready:,} ready, {carried.delayed:,} delayed, {carried.dead:,} dead"
    if carried.left is None:
        return f"{text}; what runs or is delayed there cannot be counted"
    if carried.left:
        return f"{text}; {carried.left:,} still run there, or are delayed: go again for them"
    return text
