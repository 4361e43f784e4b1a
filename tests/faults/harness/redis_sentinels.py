"""A Redis primary, its replicas, and the Sentinels that watch them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from ports import free_port

from harness.brokers import PASSWORD, USER
from harness.launchers import HostProcess
from harness.network import Network
from harness.redis_group import RedisGroup
from harness.redis_server import RedisServer
from harness.waiting import wait_until

#: What the Sentinels call the primary.
NAME = "grid"

#: Seconds of silence after which a Sentinel takes a server for down.
DOWN_AFTER = 1.5

_SENTINEL = f"""\
bind {{host}}
bind-source-addr {{host}}
port {{port}}
dir {{directory}}
requirepass {PASSWORD}
sentinel sentinel-pass {PASSWORD}
sentinel monitor {NAME} {{primary.host}} {{primary.port}} 2
sentinel auth-user {NAME} {USER}
sentinel auth-pass {NAME} {PASSWORD}
sentinel down-after-milliseconds {NAME} {int(DOWN_AFTER * 1000)}
sentinel failover-timeout {NAME} 5000
"""


class SentinelGroup(RedisGroup):
    """One primary and two replicas, each with a Sentinel beside it."""

    def __init__(self, directory: Path, network: Network | None = None) -> None:
        super().__init__(directory, network)
        self.nodes = [self._node(number) for number in range(3)]
        self._sentinels = [(node.host, free_port()) for node in self.nodes]
        self.guards = []
        for host, port in self._sentinels:
            place = directory / f"sentinel-{host}"
            place.mkdir()
            config = place / "sentinel.conf"
            config.write_text(
                _SENTINEL.format(host=host, port=port, directory=place, primary=self.nodes[0])
            )
            command = ["redis-server", str(config), "--sentinel"]
            self.guards.append(HostProcess(command, {}, place))

    def url(self, **options: str | int) -> str:
        secret = quote(PASSWORD, safe="")
        hosts = ",".join(f"{host}:{port}" for host, port in self._sentinels)
        more = "".join(f"&{name}={value}" for name, value in options.items())
        return f"redis+sentinel://{USER}:{secret}@{hosts}/{NAME}/0?sentinel_password={secret}{more}"

    @property
    def followers(self) -> Sequence[RedisServer]:
        primary = self.primary
        return [node for node in self.nodes if node is not primary]

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
            replica.command("REPLICAOF", primary.host, primary.port)
        for guard in self.guards:
            guard.start()

    def _opinions(self) -> list[str | None]:
        return [self._seen_by(place) for place in self._sentinels]

    def _is_whole(self) -> bool:
        states = [self._state(place) for place in self._sentinels]
        return (
            len({state["ip"] for state in states}) == 1
            and self._replicas() == 2
            and all(
                state["num-other-sentinels"] == 2
                and state["num-slaves"] == 2
                and state["flags"] == {"master"}
                for state in states
            )
        )

    def _begins_failover(self) -> bool:
        with self._sentinel(self._sentinels[0]) as sentinel:
            try:
                return bool(sentinel.execute_command("SENTINEL FAILOVER", NAME))
            except redis.ResponseError:  # another one has only just ended
                return False

    def _seen_by(self, place: tuple[str, int]) -> str | None:
        try:
            return str(self._state(place)["ip"])
        except redis.RedisError:
            return None

    def _state(self, place: tuple[str, int]) -> dict[str, Any]:
        with self._sentinel(place) as sentinel:
            state = sentinel.sentinel_master(NAME)
        return {**state, "flags": set(str(state["flags"]).split(","))}

    def _sentinel(self, place: tuple[str, int]) -> redis.Redis:
        return redis.Redis(*place, password=PASSWORD, socket_timeout=2)
