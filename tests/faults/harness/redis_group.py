"""Several servers of Redis, of which one at a time has our keys: processes of this machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import redis

from harness.brokers import PASSWORD, USER
from harness.launchers import HostProcess, Launcher
from harness.redis_server import RedisServer
from harness.waiting import wait_until

_REPLICATES = f"""\
masteruser {USER}
masterauth {PASSWORD}
repl-diskless-sync-delay 0
repl-ping-replica-period 1
"""


class RedisGroup(ABC):
    """A primary with replicas, and who decides which of them is the primary.

    Attributes:
        nodes: the servers; which of them is the primary changes.
        guards: processes besides, that decide.
    """

    nodes: Sequence[RedisServer]
    guards: Sequence[HostProcess] = ()

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
        seen = [port for port in self._opinions() if port is not None]
        port = max(seen, key=seen.count)
        return next(node for node in self.nodes if node.port == port)

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

    def recover(self) -> None:
        """Undo whatever a test did, and forget all messages."""
        self.start_all()
        self.wait_whole()
        self.primary.command("FLUSHALL")

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

    def _node(self, directory: Path, settings: str = "") -> RedisServer:
        directory.mkdir(parents=True)
        return RedisServer(
            directory.name, "redis-server", directory, settings=_REPLICATES + settings
        )

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
    def _opinions(self) -> list[int | None]:
        """The primary's port by each that decides; None by those that do not know."""

    @abstractmethod
    def _is_whole(self) -> bool: ...
