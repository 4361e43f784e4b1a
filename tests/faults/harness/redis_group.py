"""A Redis primary, its replicas, and the Sentinels that watch them: processes of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis

from harness.brokers import PASSWORD, USER
from harness.launchers import HostProcess
from harness.redis_server import RedisServer
from harness.waiting import free_port, wait_until

#: What the Sentinels call the primary.
NAME = "grid"

#: Seconds of silence after which a Sentinel takes a server for down.
DOWN_AFTER = 1.5

_NODE = f"""\
masteruser {USER}
masterauth {PASSWORD}
repl-diskless-sync-delay 0
repl-ping-replica-period 1
"""

_SENTINEL = f"""\
bind 127.0.0.1
port {{port}}
dir {{directory}}
requirepass {PASSWORD}
sentinel sentinel-pass {PASSWORD}
sentinel monitor {NAME} 127.0.0.1 {{primary}} 2
sentinel auth-user {NAME} {USER}
sentinel auth-pass {NAME} {PASSWORD}
sentinel down-after-milliseconds {NAME} {int(DOWN_AFTER * 1000)}
sentinel failover-timeout {NAME} 5000
"""


class RedisGroup:
    """One primary, two replicas and three Sentinels.

    Attributes:
        nodes: the servers; which of them is the primary changes.
    """

    def __init__(self, directory: Path) -> None:
        self.nodes = [self._node(directory / f"node-{number}") for number in range(3)]
        self._ports = [free_port() for _ in range(3)]
        self._sentinels = []
        for port in self._ports:
            place = directory / f"sentinel-{port}"
            place.mkdir()
            config = place / "sentinel.conf"
            config.write_text(
                _SENTINEL.format(port=port, directory=place, primary=self.nodes[0].port)
            )
            command = ["redis-server", str(config), "--sentinel"]
            self._sentinels.append(HostProcess(command, {}, place))

    def _node(self, directory: Path) -> RedisServer:
        directory.mkdir(parents=True)
        return RedisServer(directory.name, "redis-server", directory, settings=_NODE)

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        primary, *replicas = self.nodes
        for replica in replicas:
            replica.command("REPLICAOF", "127.0.0.1", primary.port)
        for sentinel in self._sentinels:
            sentinel.start()
        self.wait_whole()

    def url(self, **options: str | int) -> str:
        """The address for synmanager."""
        secret = quote(PASSWORD, safe="")
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        more = "".join(f"&{name}={value}" for name, value in options.items())
        return f"redis+sentinel://{USER}:{secret}@{hosts}/{NAME}/0?sentinel_password={secret}{more}"

    @property
    def primary(self) -> RedisServer:
        """Whom most Sentinels take for the primary."""
        seen = [port for sentinel in self._ports if (port := self._seen_by(sentinel))]
        port = max(seen, key=seen.count)
        return next(node for node in self.nodes if node.port == port)

    def fail_over(self) -> None:
        """A planned failover; returns when the Sentinels have another primary.

        Nothing is written meanwhile: the old primary would have it confirmed by the replica that
        is not promoted.
        """
        before = self.primary
        before.command("CLIENT", "PAUSE", 10_000, "WRITE")
        wait_until(self._begins_failover, 30, "a Sentinel begins a failover")
        self.wait_other(before)

    def wait_other(self, before: RedisServer) -> RedisServer:
        """Wait until another server is the primary; return it."""
        wait_until(lambda: self.primary is not before, 30, "there is another primary")
        after = self.primary
        wait_until(lambda: after.command("ROLE")[0] == b"master", 30, "it knows that it is")
        return after

    def wait_whole(self) -> None:
        """Wait until all servers run, follow one primary, and all Sentinels know of each other."""
        wait_until(self._is_whole, 60, "one primary with two replicas, seen by three Sentinels")

    def recover(self) -> None:
        """Undo whatever a test did, and forget all messages."""
        self.start_all()
        self.wait_whole()
        self.primary.command("FLUSHALL")

    def start_all(self) -> None:
        """Start those that do not run, and let those run on that are frozen."""
        for process in (*(node.launcher for node in self.nodes), *self._sentinels):
            if not process.is_running:
                process.start()
            process.thaw()

    def kill_all(self) -> None:
        for process in (*(node.launcher for node in self.nodes), *self._sentinels):
            process.kill()

    def destroy(self) -> None:
        for sentinel in self._sentinels:
            sentinel.destroy()
        for node in self.nodes:
            node.destroy()

    def _is_whole(self) -> bool:
        try:
            states = [self._state(port) for port in self._ports]
            if len({state["port"] for state in states}) > 1:
                return False
            primary = self.primary
            info = primary.command("INFO", "replication")
        except redis.RedisError:
            return False
        following = [info.get(f"slave{number}", {}).get("state") for number in range(2)]
        return following == ["online", "online"] and all(
            state["num-other-sentinels"] == 2
            and state["num-slaves"] == 2
            and state["flags"] == {"master"}
            for state in states
        )

    def _begins_failover(self) -> bool:
        with self._sentinel(self._ports[0]) as sentinel:
            try:
                return bool(sentinel.execute_command("SENTINEL FAILOVER", NAME))
            except redis.ResponseError:  # another one has only just ended
                return False

    def _seen_by(self, port: int) -> int | None:
        try:
            return int(self._state(port)["port"])
        except redis.RedisError:
            return None

    def _state(self, port: int) -> dict[str, Any]:
        with self._sentinel(port) as sentinel:
            state = sentinel.sentinel_master(NAME)
        return {**state, "flags": set(str(state["flags"]).split(","))}

    def _sentinel(self, port: int) -> redis.Redis:
        return redis.Redis("127.0.0.1", port, password=PASSWORD, socket_timeout=2)
