"""What each of kombu's transports keeps, one row each. ``docs/kombu.md`` prints it.

Read in the source of kombu 5.7, and tried where a transport can run on one machine:
``scripts/kombu-table`` runs the contract and a ``kill -9`` against it and writes the document.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from synmanager.backends.base import Address, Features
from synmanager.backends.options import flag
from synmanager.errors import ConfigurationError

__all__ = ["ROWS", "Guarantee", "allowed", "transport_of"]

Lease = Literal["connection", "renewed", "kombu", "fixed", "none"]


@dataclass(frozen=True)
class Guarantee:
    """One transport.

    Attributes:
        keeps: what was accepted outlives its publisher, and a job comes back when its consumer is
            killed.
        lease: how a delivery stays ours. ``connection``: until the connection ends. ``renewed``:
            for a time that this driver extends. ``kombu``: for one that a thread of kombu's
            extends. ``fixed``: for ``visibility`` seconds, whatever we do. ``none``: for ever, also
            after its holder died.
        visibility: seconds after which the transport itself hands a job out again, if it is not
            renewed; None where it never does.
        accepted: what it means that a publish has returned.
        durable: what was accepted survives the restart of what holds it.
        shared: other processes see the queues.
        counts: queues can be counted.
        peeks: dead letters can be looked at where they lie.
        delays: who keeps a delayed job: the ``broker``, or queues of ours that consumers ``sweep``.
        counts_held: the broker counts what it keeps.
        routes: who knows the bindings: ``all``, or only a process that has declared them itself.
        tried: whether the contract and the kill have been run against it.
        note: what else its user has to know.
    """

    keeps: bool
    lease: Lease
    visibility: float | None
    accepted: str
    durable: bool = True
    shared: bool = True
    counts: bool = True
    peeks: bool = True
    delays: Literal["broker", "sweep"] = "sweep"
    counts_held: bool = False
    routes: Literal["all", "own process"] = "all"
    tried: bool = False
    note: str = ""

    def features(self) -> Features:
        """The same for the engine."""
        return Features(
            durable=self.durable,
            shared=self.shared,
            timed_lease=self.lease in ("renewed", "kombu", "fixed"),
            deduplicates=False,
            deletes=False,
            counts_leased=False,
            counts_delayed=self.counts and (self.delays == "sweep" or self.counts_held),
            ranks_foreign=True,
            keeps_held=self.keeps,
            shows_dead_letters=self.peeks,
            mends_letters=self.counts and self.peeks,
        )


_LOST = Guarantee(
    False, "none", None, "", counts=False, peeks=False, routes="own process"
)  # fmt: skip

#: By the name in the URL. What is not here is not known, and refused like what loses jobs.
ROWS: dict[str, Guarantee] = {
    "pyamqp": Guarantee(
        True, "connection", None, "confirmed by the broker", tried=True,
        note="Messages without a route are returned (mandatory).",
    ),
    "redis": Guarantee(
        True, "renewed", 3600.0, "the server has executed it", tried=True,
        note="On disk only with appendfsync always. Taken and noted as held in one script, so "
        "that kombu's gap between the two does not exist here.",
    ),
    "sqs": Guarantee(
        True, "renewed", 1800.0, "the service has answered", peeks=False, delays="broker",
        tried=True,
        note="Standard queues keep no order. Bindings are kept as tags of the queues.",
    ),
    "pgmq": Guarantee(
        True, "renewed", 1800.0, "committed", delays="broker", counts_held=True, tried=True,
        note="Bindings are rows of `pgmq.synmanager_rows`. A late holder settles nothing.",
    ),
    "azureservicebus": Guarantee(
        True, "kombu", 60.0, "the service has answered", counts=False, peeks=False,
        routes="own process",
        note="Locks are renewed for a week at most. Whoever lost one is not told by kombu, and its "
        "late acknowledgement does nothing.",
    ),
    "gcpubsub": Guarantee(
        False, "kombu", 240.0, "a client library has it, and publishes it in the background",
        counts=False, peeks=False, routes="own process",
        note="Refused in any case: it makes queues only by bindings of its own. The thread that "
        "renews runs in every client, and needs no option.",
    ),
    "memory": Guarantee(
        False, "none", None, "in this process", durable=False, shared=False, tried=True,
        note="One for the whole process.",
    ),
    "filesystem": Guarantee(
        False, "none", None, "written to a file, not synced", tried=True,
        note="A received message is deleted from the folder. What several processes write in one "
        "millisecond has no order.",
    ),
    "sqlalchemy": Guarantee(
        False, "none", None, "committed", tried=True,
        note="A received message stays invisible for ever, and its row is never deleted.",
    ),
    "mongodb": replace(_LOST, accepted="the server has answered"),
    "etcd": replace(_LOST, accepted="the server has answered"),
    "zookeeper": replace(_LOST, accepted="the server has answered"),
    "consul": replace(_LOST, accepted="the server has answered"),
    "pyro": replace(_LOST, accepted="in the memory of another process", durable=False),
    "azurestoragequeues": replace(_LOST, accepted="the service has answered"),
}  # fmt: skip

#: Other names of kombu's for the same.
_ALIASES = {
    "amqp": "pyamqp",
    "amqps": "pyamqp",
    "rediss": "redis",
    "sqla": "sqlalchemy",
}

_PREFIX = "kombu+"


def transport_of(address: Address) -> str:
    """kombu's name for an address's transport: what follows ``kombu+``, but for a dialect."""
    name = address.scheme.removeprefix(_PREFIX).partition("+")[0]
    return _ALIASES.get(name, name)


def allowed(address: Address) -> Guarantee:
    """The row of an address.

    Raises:
        ConfigurationError: the transport may lose a job, and the address does not allow that.
    """
    name = transport_of(address)
    try:
        allows = flag(address.options.get("allow_loss", "false"))
    except ValueError as error:
        raise ConfigurationError(f"the option 'allow_loss' must be {error}") from None
    row = ROWS.get(name)
    if not allows and (row is None or not row.keeps):
        reason = (
            "is not known here, and may lose a job"
            if row is None
            else "loses a job whose consumer is killed"
        )
        raise ConfigurationError(
            f"kombu's transport {name!r} {reason}; take one that keeps it "
            f"({', '.join(_keeping())}), or allow the loss with ?allow_loss=true"
        )
    return row or replace(_LOST, accepted="not known")


def _keeping() -> Iterator[str]:
    return (name for name, row in ROWS.items() if row.keeps)
