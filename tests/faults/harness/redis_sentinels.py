"""A Redis primary, its replicas, and the Sentinels that watch them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from ports import free_port

from harness.brokers import PASSWORD, USER
from harness.launchers import HostProcess
from harness.redis_group import RedisGroup
from harness.waiting import wait_until

#: What the Sentinels call the primary.
NAME = "grid"

#: Seconds of silence after which a Sentinel takes a server for down.
DOWN_AFTER = 1.5

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


class SentinelGroup(RedisGroup):
    """One primary, two replicas and three Sentinels."""

    def __init__(self, directory: Path) -> None:
        self.nodes = [self._node(directory / f"node-{number}") for number in range(3)]
        self._ports = [free_port() for _ in range(3)]
        self.guards = []
        for port in self._ports:
            place = directory / f"sentinel-{port}"
            place.mkdir()
            config = place / "sentinel.conf"
            config.write_text(
                _SENTINEL.format(port=port, directory=place, primary=self.nodes[0].port)
            )
            command = ["redis-server", str(config), "--sentinel"]
            self.guards.append(HostProcess(command, {}, place))

    def url(self, **options: str | int) -> str:
        secret = quote(PASSWORD, safe="")
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        more = "".join(f"&{name}={value}" for name, value in options.items())
        return f"redis+sentinel://{USER}:{secret}@{hosts}/{NAME}/0?sentinel_password={secret}{more}"

    def fail_over(self) -> None:
        # Nothing is written meanwhile: the old primary would have it confirmed by the replica that
        # is not promoted.
        before = self.primary
        before.command("CLIENT", "PAUSE", 10_000, "WRITE")
        wait_until(self._begins_failover, 30, "a Sentinel begins a failover")
        self.wait_other(before)

    def hand_over(self) -> None:
        """A failover of which the primary hears last: until then it takes what is written."""
        before = self.primary
        wait_until(self._begins_failover, 30, "a Sentinel begins a failover")
        self.wait_other(before)

    def _join(self) -> None:
        primary, *replicas = self.nodes
        for replica in replicas:
            replica.command("REPLICAOF", "127.0.0.1", primary.port)
        for guard in self.guards:
            guard.start()

    def _opinions(self) -> list[int | None]:
        return [self._seen_by(port) for port in self._ports]

    def _is_whole(self) -> bool:
        states = [self._state(port) for port in self._ports]
        return (
            len({state["port"] for state in states}) == 1
            and self._replicas() == 2
            and all(
                state["num-other-sentinels"] == 2
                and state["num-slaves"] == 2
                and state["flags"] == {"master"}
                for state in states
            )
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
