"""What the suite asks of a broker besides its backend."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn

import pytest

from synmanager.backends.base import ExchangeSpec, QueueBackend, QueueSpec
from synmanager.testing.watchdog import bounded

__all__ = ["ABILITIES", "BrokerUnderTest"]

#: What a broker's owner may be able to do to it, and what the suite cannot test without.
ABILITIES: Mapping[str, str] = {
    "cut": "crashes of clients, and what they leave behind",
    "publish_raw": "messages of other programs",
    "publish_damaged": "messages whose metadata makes no sense",
    "confuse": "answers that no driver can know",
    "freeze": "timeouts, and a close that ends",
    "freeze_server": "a broker that stood still, and its workers' leases",
    "restart": "what outlives the broker's end",
    "refused": "the difference between refused and unavailable, and secrets in what is said",
    "dead": "the difference between unavailable and refused",
    "requests": "waiting that costs the broker next to nothing",
    "cut_round_trip": "requests and replies that are lost, at every point of every operation",
}


class BrokerUnderTest(ABC):
    """A running broker, and what only its own test module knows how to do to it.

    It may be shared and dirty: every test declares names of its own. It may live for one test or
    for many: the suite closes the clients that it took after each test.

    A client must be made. All else is optional, and what is missing is reported: the tests that
    need it are skipped and say so, see :data:`ABILITIES`. A driver that talks to a host and a port
    finds most of it done in :class:`~synmanager.testing.network.NetworkBrokerUnderTest`.

    Attributes:
        lease: seconds. Tests that let a lease run out connect with this one: short, because a
            real broker makes them sit it out, and long enough that a busy machine keeps it.
        delay: seconds by which delayed messages are delayed; the same thoughts.
        quiet: seconds of silence after which a test believes that nothing will come.
        timeout: seconds; clients that meet a frozen broker connect with this ``Address.timeout``.
        patience: seconds after which a step that has not returned has failed: it blocks.
        excuses: why an ability is missing, by its name, where there is a reason.
    """

    lease: float = 1.0
    delay: float = 1.0
    quiet: float = 0.2
    timeout: float = 1.0
    patience: float = 45.0
    excuses: ClassVar[Mapping[str, str]] = {}

    def __init__(self) -> None:
        self._clients: list[QueueBackend] = []

    # What there must be.

    @abstractmethod
    def new_client(self, **address: Any) -> QueueBackend:
        """Make a backend, not yet opened, with a connection of its own.

        Args:
            address: fields of :class:`~synmanager.backends.Address` to differ in, such as
                ``lease=1.0``.
        """

    # What has a default that may do.

    def bad_options(self) -> list[dict[str, str]]:
        """Options of an ``Address`` that a backend must refuse to be made with.

        By default one that nobody knows. Add those that your backend knows, with values that
        cannot be.
        """
        return [{"no-such-option": "1"}]

    def pass_time(self, seconds: float) -> None:
        """Let time pass for the broker and its clients: sleep, or advance a clock."""
        time.sleep(seconds)

    def discard(self, *specs: ExchangeSpec | QueueSpec) -> None:  # noqa: B027 - a default
        """Remove what a test declared. By default it stays, for a broker that is thrown away."""

    def discard_logs(self, *logs: str) -> None:  # noqa: B027 - as above
        """Remove logs of the journal that a test wrote to."""

    # What is reported where it is missing.

    def cut(self, client: QueueBackend) -> None:
        """End this client's connection abruptly, as when its process dies or its cable breaks.

        Nothing is given back in an orderly way. The broker knows of it when this returns, or
        soon after. A later ``client.open()`` connects anew.
        """
        self.miss("cut")

    def publish_raw(self, queue: str, body: bytes) -> None:
        """Put a message in a queue as a foreign program would: the body and nothing else."""
        self.miss("publish_raw")

    def publish_damaged(self, queue: str) -> list[bytes]:
        """Put messages in a queue whose *metadata* no reader can make sense of.

        One for each kind of damage that this broker can carry (an attempt that is no number, a
        field that is missing). Returns their bodies in order, ``b""`` for one without a body.
        """
        self.miss("publish_damaged")

    def confuse(self, client: QueueBackend) -> None:
        """Have this client's next call answered with what no driver can know.

        As a proxy with an error of its own does, or a broker of another mind.
        """
        self.miss("confuse")

    def freeze(self) -> None:
        """Stop the broker from answering, as SIGSTOP does; connections stay, and can be made.

        If only the way to it is blocked, only for wired clients, see :meth:`new_wired_client`.
        """
        self.miss("freeze")

    def thaw(self) -> None:  # noqa: B027 - a default
        """Let it answer again. Called after every test that froze it; harmless if it is not."""

    def freeze_server(self, seconds: float) -> None:
        """Have the server itself stand still for so long, as SIGSTOP or ``docker pause`` does.

        What a proxy cannot do: to the server no time has passed, for all that it can tell.
        """
        self.miss("freeze_server")

    def restart(self, *, crash: bool) -> None:
        """End the broker, and return when the next one answers at the same address.

        Args:
            crash: as ``kill -9`` does; otherwise it is told to end.
        """
        self.miss("restart")

    def refused(self, password: str) -> dict[str, Any]:
        """Fields of an address at which the broker answers, and lets nobody in.

        Args:
            password: must be one of them. The suite looks for it in all that is said.
        """
        self.miss("refused")

    def dead(self, password: str) -> dict[str, Any]:
        """Fields of an address at which nobody answers.

        Args:
            password: one of them, where there can be any.
        """
        self.miss("dead")

    def new_wired_client(self, **address: Any) -> QueueBackend:
        """Make a client for which :meth:`requests` and the like work.

        By default any client. Where they need a proxy, this is what puts one in between.
        """
        return self.new_client(**address)

    def requests(self, client: QueueBackend) -> int:
        """How many requests a wired client has sent to the broker so far, about."""
        self.miss("requests")

    def cut_round_trip(
        self, client: QueueBackend, number: int, *, acted: bool
    ) -> Callable[[], bool]:
        """Cut a wired client's connection at one of its next round trips.

        Args:
            number: which of them, counted from 1.
            acted: the request arrives and its reply is lost; else the request is lost as well.

        Returns:
            what tells whether it has been cut. Called once, when the operation is over: if it has
            not been, it will not be any more.
        """
        self.miss("cut_round_trip")

    # What the suite does with it.

    def lacks(self, ability: str) -> str:
        """Why this broker's owner cannot do that; "" if he can.

        By default what is not overridden is missing. Override it where more decides.
        """
        if getattr(type(self), ability) is not getattr(BrokerUnderTest, ability):
            return ""
        return self.excuses.get(ability, "not implemented")

    def miss(self, ability: str) -> NoReturn:
        """Skip the test for want of an ability."""
        why = self.lacks(ability) or "not possible here"
        pytest.skip(
            f"contract: {type(self).__name__}.{ability}: {why}; "
            f"so this is not tested: {ABILITIES[ability]}"
        )

    def make(self, *, wired: bool = False, **address: Any) -> QueueBackend:
        """Make a client that is closed after the test."""
        client = self.new_wired_client(**address) if wired else self.new_client(**address)
        self._clients.append(client)
        return client

    def connect(self, *, wired: bool = False, **address: Any) -> QueueBackend:
        """Make a client and open it."""
        client = self.make(wired=wired, **address)
        bounded(self.patience, client.open)
        return client

    def close_clients(self) -> None:
        """Close every client that :meth:`make` gave, whatever becomes of the others.

        Raises:
            Exception: the first that a ``close`` raised.
        """
        errors: list[Exception] = []
        while self._clients:
            try:
                bounded(self.patience, self._clients.pop().close)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
