"""What would hurt on a broker: a small function for each thing that is looked for."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING

from synmanager.backends.base import Address, Counts, Facts, Features, QueueBackend
from synmanager.backends.registry import create_backend
from synmanager.backends.urls import written_hosts
from synmanager.errors import SynmanagerError, TopologyError
from synmanager.phases import COMPLETED, PHASES, with_phases
from synmanager.words import plural, size

if TYPE_CHECKING:
    from synmanager.backends.rabbitmq.management import Node

__all__ = [
    "CHECKS",
    "Check",
    "Finding",
    "Seen",
    "Severity",
    "at_hand",
    "count",
    "findings",
    "is_loopback",
    "look",
]

#: Seconds that a look at another address of the broker may take.
_PATIENCE = 3.0

#: Results that nobody reads before that is worth a word.
_MANY_RESULTS = 100

#: Bytes of a disk that are little, and a part of a memory that is much.
_LITTLE_DISK, _MUCH_MEMORY = 1024**3, 0.9

#: When community support of a RabbitMQ series ended, by https://endoflife.date/rabbitmq.
_RABBITMQ_ENDED = {
    (3, 10): "2023-07-31",
    (3, 11): "2023-06-01",
    (3, 12): "2024-02-21",
    (3, 13): "2024-09-17",
    (4, 0): "2025-04-15",
    (4, 1): "2026-01-30",
}


#: The name of a plain protocol in a scheme, and of the same over TLS.
_TLS_NAMES = {"amqp": "amqps", "redis": "rediss", "valkey": "valkeys"}

#: How a primary gets a replica, by who lets that take over.
_REPLICA_REMEDIES = {
    "sentinel": "Start a replica (replicaof), and see that Sentinel lists it: SENTINEL REPLICAS.",
    "cluster": "Add a node as this one's replica (CLUSTER REPLICATE): docs/clusters.md",
}


class Severity(IntEnum):
    NOTE = 0
    WARNING = 1
    DANGER = 2


@dataclass(frozen=True)
class Finding:
    """What would hurt, in plain words, and what to do."""

    severity: Severity
    what: str
    remedy: str

    def as_dict(self) -> dict[str, str]:
        return {
            "severity": self.severity.name.lower(), "what": self.what, "remedy": self.remedy,
        }  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What is known of a broker.

    Attributes:
        counts: of every queue that is known; None for one that is not there.
        longest_job: seconds.
    """

    address: Address
    facts: Facts
    features: Features
    counts: Mapping[str, Counts | None]
    longest_job: float

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version; (0, 0) if nobody knows."""
        found = re.match(r"(\d+)\.(\d+)", self.facts.version)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    @property
    def is_rabbitmq(self) -> bool:
        return self.facts.product == "RabbitMQ"

    @property
    def is_redis(self) -> bool:
        return self.facts.product in ("Redis", "Valkey")

    @property
    def has_nodes(self) -> bool:
        """Whether there is a management API that may tell of RabbitMQ's nodes."""
        return self.is_rabbitmq and self.address.scheme in ("amqp", "amqps")

    @cached_property
    def nodes(self) -> Sequence[Node]:
        """RabbitMQ's that run, which are asked for once; none where nobody tells."""
        return _nodes(self.address) if self.has_nodes else ()

    @property
    def pressure(self) -> dict[str, str]:
        """How much is taken of the room that there is, in words, by what it is."""
        told = {what: _of(taken, most) for what, (taken, most) in self.facts.room.items()}
        for node in self.nodes:
            of_node = f" of {node.name}" if len(self.nodes) > 1 else ""
            told[f"memory{of_node}"] = _of(node.memory, node.memory_limit)
            told[f"disk{of_node}"] = (
                f"{size(node.disk_free)} free, alarm at {size(node.disk_limit)}"
            )
            told[f"alarms{of_node}"] = ", ".join(node.alarms) or "none"
        return told


Check = Callable[[Seen], Iterator[Finding]]


def look(broker: QueueBackend, longest_job: float) -> Seen:
    """Ask a broker for all that the checks want to know: some round trips for each queue.

    Args:
        longest_job: seconds.
    """
    names = with_phases(broker.facts().queues)
    return Seen(
        broker.address,
        broker.facts(names),
        broker.features,
        {name: count(broker, name) for name in names},
        longest_job,
    )


def count(broker: QueueBackend, queue: str) -> Counts | None:
    """What is in a queue; None if it is not there, as looking must not create it."""
    try:
        return broker.count(queue)
    except TopologyError:
        return None


def at_hand(counts: Counts | None) -> str:
    """In words, what is in a queue, as far as the broker can tell."""
    if counts is None:
        return "nothing was ever submitted"
    told = [plural(counts.ready, "job is", "jobs are") + " ready"]
    if counts.delayed is not None:
        told.append(f"{counts.delayed:,} delayed")
    if counts.leased is not None:
        told.append(f"{counts.leased:,} running")
    return ", ".join(told)


def findings(seen: Seen) -> list[Finding]:
    """What would hurt, the worst first."""
    found = [finding for check in CHECKS for finding in check(seen)]
    return sorted(found, key=lambda finding: -finding.severity)


def old_version(seen: Seen) -> Iterator[Finding]:
    ended = _RABBITMQ_ENDED.get(seen.release) if seen.is_rabbitmq else None
    if ended is not None:
        yield Finding(
            Severity.WARNING,
            f"RabbitMQ {seen.facts.version} gets no more fixes without a contract; community "
            f"support of this series ended on {ended}",
            "Upgrade it, one series at a time, or move the jobs: synmanager move --from … --to …",
        )


def missing_queues(seen: Seen) -> Iterator[Finding]:
    missing = [phase.queue for phase in PHASES.values() if seen.counts.get(phase.queue) is None]
    if missing:
        yield Finding(
            Severity.NOTE,
            f"not there yet: the queues {', '.join(missing)}",
            "They are made when a Director or a TTP first connects. Where users may not make "
            "queues, use the image's definitions.",
        )


def unranked_queues(seen: Seen) -> Iterator[Finding]:
    if not seen.is_rabbitmq:
        return
    flat = []
    for phase in PHASES.values():
        arguments = seen.facts.arguments.get(phase.queue)
        if arguments is None:
            continue
        is_quorum = arguments.get("x-queue-type") == "quorum"  # before 4.3, it has sisters
        if not (arguments.get("x-max-priority") or is_quorum):
            flat.append(phase.queue)
    if flat:
        yield Finding(
            Severity.WARNING,
            f"cannot rank: the queues {', '.join(flat)} were made without priorities, as by 0.1.0; "
            "their jobs run in the order of their submission, whatever their priority",
            "Move their jobs away, delete them while they are empty, and move the jobs back: "
            "synmanager move --help",
        )


def unfit_queues(seen: Seen) -> Iterator[Finding]:
    for queue, arguments in seen.facts.arguments.items():
        costly = [name for name in ("x-expires", "x-message-ttl") if name in arguments]
        if not str(arguments.get("x-overflow", "drop-head")).startswith("reject-publish"):
            costly += [n for n in ("x-max-length", "x-max-length-bytes") if n in arguments]
        if arguments.get("durable") is False:
            costly.append("not being durable")
        if costly:
            yield Finding(
                Severity.DANGER,
                f"queue {queue} may lose confirmed jobs, by {' and '.join(costly)}",
                "Take that out of its policy or definition; an argument can only be changed by "
                "deleting the queue: synmanager move --help",
            )
        for name in ("x-single-active-consumer", "auto_delete"):
            if arguments.get(name):
                yield Finding(
                    Severity.DANGER,
                    f"queue {queue} cannot carry jobs: it has {name}",
                    "Delete it while it is empty; it is made anew.",
                )
        if arguments.get("x-queue-type") == "stream":
            yield Finding(
                Severity.DANGER,
                f"queue {queue} is a stream, from which nothing is ever taken",
                "Delete it; it is made anew.",
            )


def short_patience(seen: Seen) -> Iterator[Finding]:
    """Whether RabbitMQ takes a job back from a worker that is still at it."""
    if not (seen.is_rabbitmq and seen.release > (0, 0)):
        return
    remedy = (
        "Set consumer_timeout in rabbitmq.conf, in milliseconds, above your longest job; our image "
        "has seven days."
    )
    hours = f"{seen.longest_job / 3600:g} h"
    if seen.release < (3, 12):
        yield Finding(
            Severity.WARNING,
            f"RabbitMQ {seen.facts.version} ends a job that is not done after consumer_timeout, "
            f"which is 30 minutes unless its configuration says otherwise, and it shows that to "
            f"nobody; a job of {hours} would begin again and again",
            remedy,
        )
        return
    for queue, arguments in seen.facts.arguments.items():
        if arguments.get("x-queue-type") != "quorum" and seen.release >= (4, 3):
            continue  # there it is a matter of quorum queues alone
        patience = arguments.get("x-consumer-timeout")
        if patience is None or int(patience) < seen.longest_job * 1000:
            said = (
                "30 minutes unless the configuration says otherwise"
                if patience is None
                else f"{int(patience) / 60_000:g} minutes"
            )
            yield Finding(
                Severity.WARNING,
                f"queue {queue} ends a job that is not done after {said}, and your longest takes "
                f"{hours}",
                remedy,
            )


def other_nodes(seen: Seen) -> Iterator[Finding]:
    """Whether every host of the URL is there, and all are one broker."""
    if not seen.address.others:
        return
    clusters: dict[str, list[str]] = {}
    for host, port in seen.address.hosts:
        name = written_hosts([(host, port)])
        answer = _visit(replace(seen.address, host=host, port=port, others=()))
        if isinstance(answer, SynmanagerError):
            yield Finding(
                Severity.WARNING,
                f"{name} does not let us in, though the URL names it: {answer}",
                "Start it, or mend its network; until then the others have one fewer to lose.",
            )
        elif cluster := answer.settings.get("cluster_name"):
            clusters.setdefault(cluster, []).append(name)
    if len(clusters) > 1:
        sides = "; ".join(f"{' and '.join(hosts)} of {name}" for name, hosts in clusters.items())
        yield Finding(
            Severity.DANGER,
            f"the hosts of the URL are nodes of different clusters ({sides}): a job that is "
            "submitted at one is not seen at the other",
            "Join them to one cluster, or name the hosts of one alone: docs/clusters.md",
        )


def lone_queues(seen: Seen) -> Iterator[Finding]:
    """Whether a queue lies on one node, where several are meant."""
    if not seen.is_rabbitmq:
        return
    kinds = {name: made.get("x-queue-type") for name, made in seen.facts.arguments.items()}
    wanted = seen.address.others or seen.address.options.get("queues") == "quorum"
    lone = [name for name, kind in kinds.items() if wanted and kind == "classic"]
    if lone:
        yield Finding(
            Severity.WARNING,
            f"on one node alone: the queues {', '.join(lone)}; while it is gone, so are their jobs",
            "Make them quorum queues: docs/clusters.md#from-classic-to-quorum-queues",
        )
    if "quorum" not in kinds.values():
        return
    for queue, (nodes, running) in _copies(seen.address).items():
        if kinds.get(queue) != "quorum":
            continue
        if nodes < 3:
            yield Finding(
                Severity.WARNING,
                f"queue {queue} is a quorum queue on {nodes} node{'s' * (nodes > 1)}, and outlives "
                "the loss of none",
                f"Have three nodes, and on each new one: rabbitmq-queues grow NODE all; so far "
                f"{running} of {nodes} run.",
            )
        elif running < nodes:
            spare = running - (nodes // 2 + 1)
            yield Finding(
                Severity.WARNING if spare > 0 else Severity.DANGER,
                f"queue {queue} has {running} of its {nodes} nodes, and outlives the loss of "
                + (f"{spare} more" if spare > 0 else "no other"),
                "Start the others; rabbitmq-diagnostics cluster_status names them.",
            )


def missing_replicas(seen: Seen) -> Iterator[Finding]:
    """Whether a Redis has the replicas that the URL counts on."""
    there = seen.facts.settings.get("connected_slaves")
    if there is None or not seen.is_redis:
        return
    wanted = int(seen.address.options.get("replicas", 0))
    how = seen.address.scheme.partition("+")[2]
    if int(there) < wanted:
        yield Finding(
            Severity.DANGER,
            f"the URL asks for {wanted} replicas, and {seen.facts.product} has {there}: no job is "
            "confirmed",
            "Start the replicas, or ask for fewer (?replicas=…): docs/clusters.md",
        )
    elif there == "0" and how in _REPLICA_REMEDIES:
        yield Finding(
            Severity.WARNING,
            "no replica is connected to the primary: nothing can take over from it",
            _REPLICA_REMEDIES[how],
        )


def open_guest(seen: Seen) -> Iterator[Finding]:
    """Whether guest, whose password everybody knows, is let in from the network."""
    if not seen.is_rabbitmq or seen.address.scheme not in ("amqp", "amqps"):
        return
    # From here the broker may see a neighbour: look as somebody of the network would.
    places = (
        (_own_address() if is_loopback(host) else host, port) for host, port in _hosts(seen.address)
    )
    guest = replace(seen.address, username="guest", password="guest")
    lax = [
        (host, port)
        for host, port in dict.fromkeys(places)
        if host and _lets_in(replace(guest, host=host, port=port, others=()))
    ]
    if lax:
        yield Finding(
            Severity.DANGER,
            f"anybody who reaches {_either(dict(lax))} is let in as guest, with the password "
            "that everybody knows, and may read, change and delete all jobs",
            "Make users of your own (rabbitmqctl add_user), then rabbitmqctl delete_user guest; "
            "or leave loopback_users as it is by default.",
        )


def open_redis(seen: Seen) -> Iterator[Finding]:
    far = _far(seen.address)
    if seen.is_redis and far and not (seen.address.username or seen.address.password):
        where = _either(far)
        if "+sentinel" in seen.address.scheme:  # whose own password is another matter
            where = f"the primary that the Sentinels at {where} name"
        yield Finding(
            Severity.DANGER,
            f"anybody who reaches {where} is let in without a password, and may read, change "
            "and delete all jobs",
            "Set requirepass, or ACL users, and SYNMANAGER_USERNAME and SYNMANAGER_PASSWORD.",
        )


def no_tls(seen: Seen) -> Iterator[Finding]:
    encrypted = _over_tls(seen.address.scheme)
    far = _far(seen.address)
    if encrypted and far:
        yield Finding(
            Severity.WARNING,
            f"jobs and passwords travel to {' and '.join(far)} unencrypted",
            f"Use {encrypted}:// with a certificate: docs/backends.md",
        )


def redis_forgets(seen: Seen) -> Iterator[Finding]:
    if not seen.is_redis:
        return
    settings = seen.facts.settings
    if settings.get("appendonly") == "no":
        yield Finding(
            Severity.DANGER,
            f"{seen.facts.product} keeps what it confirms in memory alone (appendonly no); a crash "
            "loses every job since its last snapshot",
            "CONFIG SET appendonly yes, CONFIG SET appendfsync always, CONFIG REWRITE.",
        )
    elif settings.get("appendfsync", "always") != "always":
        yield Finding(
            Severity.WARNING,
            f"{seen.facts.product} confirms jobs before they are on its disk (appendfsync "
            f"{settings['appendfsync']}); a crash can lose the last second's",
            "CONFIG SET appendfsync always, CONFIG REWRITE.",
        )


def redis_evicts(seen: Seen) -> Iterator[Finding]:
    policy = seen.facts.settings.get("maxmemory-policy", "noeviction")
    if seen.is_redis and policy.startswith("allkeys"):
        yield Finding(
            Severity.DANGER,
            f"{seen.facts.product} throws jobs away when it is full (maxmemory-policy {policy})",
            "CONFIG SET maxmemory-policy noeviction, CONFIG REWRITE.",
        )


def little_room(seen: Seen) -> Iterator[Finding]:
    for what, (taken, most) in seen.facts.room.items():
        left = most - taken
        if left < _LITTLE_DISK if what == "disk" else taken > _MUCH_MEMORY * most:
            yield Finding(
                Severity.WARNING,
                f"{seen.facts.product} has {size(max(left, 0))} of {what} left, and takes "
                f"{size(taken)}; when it is full, jobs and results are refused",
                "Give it more, or have what waits there taken, archived or purged: synmanager "
                "status",
            )


def pressed_nodes(seen: Seen) -> Iterator[Finding]:
    """Whether a node of RabbitMQ accepts nothing any more, or soon."""
    if seen.has_nodes and not seen.nodes:
        yield Finding(
            Severity.NOTE,
            "not known: what RabbitMQ has left of memory and disk, and whether an alarm has gone "
            "off, in which it accepts no jobs; its management API does not tell us",
            "Switch it on (rabbitmq-plugins enable rabbitmq_management), let its port be reached "
            "from here (15672; 15671 for amqps), and give the user the tag for it "
            "(rabbitmqctl set_user_tags USER monitoring). On a node itself: rabbitmq-diagnostics "
            "alarms.",
        )
    for node in seen.nodes:
        memory = f"{_of(node.memory, node.memory_limit)} of memory taken"
        disk = f"{size(node.disk_free)} of disk free, where it stops at {size(node.disk_limit)}"
        if node.alarms:
            yield Finding(
                Severity.DANGER,
                f"the node {node.name} accepts no jobs and no results: its alarm for "
                f"{' and '.join(node.alarms)} has gone off ({memory}, {disk})",
                "Give it more, or have what waits there taken, archived or purged; workers wait "
                "with what they have done.",
            )
        elif (
            node.memory > _MUCH_MEMORY * node.memory_limit
            or node.disk_free - node.disk_limit < _LITTLE_DISK
        ):
            yield Finding(
                Severity.WARNING,
                f"the node {node.name} is about to accept no more: {memory}, {disk}",
                "Give it more, or have what waits there taken, archived or purged.",
            )


def nothing_outlives_memory(seen: Seen) -> Iterator[Finding]:
    if not seen.features.durable:
        yield Finding(
            Severity.WARNING,
            "jobs are in memory alone: they end with "
            + ("the broker" if seen.features.shared else "this process, and no other sees them"),
            "Set SYNMANAGER_BACKEND to a broker: docs/backends.md",
        )


def what_is_held_is_lost(seen: Seen) -> Iterator[Finding]:
    if not seen.features.keeps_held:
        yield Finding(
            Severity.DANGER,
            "a job is lost with the worker that holds it: this transport has no leases",
            "Use another broker: docs/kombu.md",
        )


def unread_results(seen: Seen) -> Iterator[Finding]:
    for queue, counts in seen.counts.items():
        if counts is None or not queue.startswith(COMPLETED.queue):
            continue
        idle = not seen.facts.consumers.get(queue) and not counts.leased
        if idle and counts.ready >= _MANY_RESULTS:
            yield Finding(
                Severity.WARNING,
                f"{counts.ready:,} results wait in {queue}, and nobody reads them; it grows until "
                "the broker is full",
                "Run an Archiver (synmanager archive MODULE:CALLBACK). If nobody wants them: "
                "synmanager purge completed, and for a subscriber that is gone for good "
                "synmanager unsubscribe NAME.",
            )


def dead_letters(seen: Seen) -> Iterator[Finding]:
    dead = {queue: counts.dead for queue, counts in seen.counts.items() if counts and counts.dead}
    if dead:
        yield Finding(
            Severity.NOTE,
            "dead letters: "
            + ", ".join(f"{number:,} in {queue}" for queue, number in dead.items()),
            "synmanager dead list",
        )


CHECKS: tuple[Check, ...] = (
    old_version,
    missing_queues,
    unranked_queues,
    unfit_queues,
    short_patience,
    other_nodes,
    lone_queues,
    missing_replicas,
    open_guest,
    open_redis,
    no_tls,
    redis_forgets,
    redis_evicts,
    little_room,
    pressed_nodes,
    nothing_outlives_memory,
    what_is_held_is_lost,
    unread_results,
    dead_letters,
)


def _of(taken: int, most: int) -> str:
    return f"{size(taken)} of {size(most)}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hosts(address: Address) -> Sequence[tuple[str, int | None]]:
    """All hosts that an address means, with their ports."""
    return address.hosts or (("localhost", address.port),)


def _far(address: Address) -> list[str]:
    """Those hosts that are reached over a network."""
    return [host for host in dict(_hosts(address)) if not is_loopback(host)]


def _either(hosts: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(hosts))


def _over_tls(scheme: str) -> str | None:
    """The scheme of the same broker over TLS; None if there is none, or this is it."""
    encrypted = "+".join(_TLS_NAMES.get(part, part) for part in scheme.split("+"))
    return None if encrypted == scheme else encrypted


def _own_address() -> str | None:
    """An address of this machine that others know it by; nothing is sent for it."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # of a network that is nowhere
            address: str = probe.getsockname()[0]
    except OSError:
        return None
    return None if is_loopback(address) else address


def _lets_in(address: Address) -> bool:
    return not isinstance(_visit(address), SynmanagerError)


def _visit(address: Address) -> Facts | SynmanagerError:
    """What a broker tells of itself at an address, or why it tells nothing."""
    backend = create_backend(replace(address, timeout=min(address.timeout, _PATIENCE)))
    try:
        backend.open()
        return backend.facts()
    except SynmanagerError as error:
        return error
    finally:
        backend.close()


def _copies(address: Address) -> Mapping[str, tuple[int, int]]:
    from synmanager.backends.rabbitmq.management import copies

    return copies(address, min(address.timeout, _PATIENCE))


def _nodes(address: Address) -> Sequence[Node]:
    from synmanager.backends.rabbitmq.management import nodes

    return nodes(address, min(address.timeout, _PATIENCE))
