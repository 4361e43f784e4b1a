"""Several servers of Redis, of which one at a time has our keys: processes of this machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import redis

from harness.brokers import PASSWORD, USER
from harness.launchers import HostProcess, Launcher
from harness.network import Network
from harness.redis_server import RedisServer
from harness.waiting import wait_until

_REPLICATES = f"""\
bind-source-addr {{host}}
masteruser {USER}
masterauth {PASSWORD}
repl-diskless-sync-delay 0
repl-ping-replica-period 1
"""


class RedisGroup(ABC):
    """A primary with replicas, and who decides which of them is the primary.

    Args:
        directory: for the files of all.
        network: which they live in.

    Attributes:
        nodes: the servers; which of them is the primary changes.
        guards: processes besides, that decide.
    """

    nodes: Sequence[RedisServer]
    guards: Sequence[HostProcess] = ()

    def __init__(self, directory: Path, network: Network | None = None) -> None:
        self._directory = directory
        self._network = network

    def start(self) -> None:
        """Start all, for the first time."""
        for node in self.nodes:
            node.start()
        self._join()
        self.wait_whole()

    @abstractmethod
    def url(self, **options: str | int) -> str:
        """The address for synmanager."""

    @property
    def primary(self) -> RedisServer:
        """Whom most of those that decide take for the primary."""
        seen = [host for host in self._opinions() if host is not None]
        host = max(seen, key=seen.count)
        return next(node for node in self.nodes if node.host == host)

    @property
    @abstractmethod
    def followers(self) -> Sequence[RedisServer]:
        """Those that can take the primary's place."""

    @abstractmethod
    def fail_over(self) -> None:
        """A planned failover, by which nothing is lost; returns when there is another primary."""

    def wait_other(self, before: RedisServer) -> RedisServer:
        """Wait until another server is the primary; return it."""
        wait_until(lambda: self.primary is not before, 30, "there is another primary")
        after = self.primary
        wait_until(lambda: after.command("ROLE")[0] == b"master", 30, "it knows that it is")
        return after

    def wait_whole(self) -> None:
        """Wait until all run and agree."""
        wait_until(self._agrees, 60, "one primary with two replicas, of which everybody knows")

    def mend(self) -> None:
        """Undo whatever was done to them, and wait until all run and agree."""
        if self._network is not None:
            self._network.heal()
        self.start_all()
        self.wait_whole()

    def recover(self) -> None:
        """Undo whatever a test did, and forget all messages."""
        self.mend()
        self.primary.command("FLUSHALL")

    def cut_off(self, node: RedisServer, *clients: str) -> None:
        """Let a server, and a guard beside it, hear and be heard by none of the others.

        Args:
            clients: hosts of those that are cut off from it besides.
        """
        assert self._network is not None
        others = [other.host for other in self.nodes if other is not node]
        self._network.cut_off(node.host, [*others, *clients])

    def start_all(self) -> None:
        """Start those that do not run, and let those run on that are frozen."""
        for process in self._processes():
            if not process.is_running:
                process.start()
            process.thaw()

    def kill_all(self) -> None:
        for process in self._processes():
            process.kill()

    def destroy(self) -> None:
        for guard in self.guards:
            guard.destroy()
        for node in self.nodes:
            node.destroy()

    def _processes(self) -> list[Launcher]:
        return [*(node.launcher for node in self.nodes), *self.guards]

    def _node(self, number: int, settings: str = "") -> RedisServer:
        """A server on a host of its own."""
        host = f"127.0.1.{number + 1}"
        directory = self._directory / f"node-{number}"
        directory.mkdir(parents=True)
        settings = _REPLICATES.format(host=host) + settings
        return RedisServer(directory.name, "redis-server", directory, host=host, settings=settings)

    def _agrees(self) -> bool:
        try:
            return self._is_whole()
        except redis.RedisError:
            return False

    def _replicas(self) -> int:
        """How many replicas the primary has that follow it."""
        info = self.primary.command("INFO", "replication")
        states = [info.get(f"slave{number}", {}).get("state") for number in range(2)]
        return states.count("online")

    @abstractmethod
    def _join(self) -> None:
        """Tell those that have just started of each other."""

    @abstractmethod
    def _opinions(self) -> list[str | None]:
        """The primary's host by each that decides; None by those that do not know."""

    @abstractmethod
    def _is_whole(self) -> bool: ...
