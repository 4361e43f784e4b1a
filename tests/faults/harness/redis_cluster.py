"""A Redis Cluster: the slot of our keys is one primary's, and may be moved to another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote

import redis
from ports import free_port
from redis.crc import key_slot

from harness.brokers import PASSWORD, USER
from harness.network import Network
from harness.redis_group import RedisGroup
from harness.redis_server import RedisServer
from harness.waiting import wait_until

#: Seconds of silence after which nodes take another one for down.
DOWN_AFTER = 1.5

#: Where all keys of a grid lie, and how many slots there are.
SLOT, SLOTS = key_slot(b"{synmanager}"), 16_384

#: Seconds between two keys that move, as if there were many.
_PACE = 0.1

#: A replica may take over however long it has not heard of its primary, and stays with its shard.
_MEMBER = f"""\
cluster-enabled yes
cluster-port {{port}}
cluster-node-timeout {int(DOWN_AFTER * 1000)}
cluster-replica-validity-factor 0
cluster-allow-replica-migration no
"""


class ClusterGroup(RedisGroup):
    """Three primaries: one with our slot and two replicas, another with two, and one that votes."""

    def __init__(self, directory: Path, network: Network | None = None) -> None:
        super().__init__(directory, network)
        self._buses = [free_port() for _ in range(7)]
        self.nodes = [
            self._node(number, _MEMBER.format(port=port)) for number, port in enumerate(self._buses)
        ]
        self._voter, *others = self.nodes
        self._shards = (others[:3], others[3:])  # each with its first primary in front

    def url(self, **options: str | int) -> str:
        hosts = ",".join(f"{node.host}:{node.port}" for node in self.nodes)
        more = "&".join(f"{name}={value}" for name, value in options.items())
        return f"redis+cluster://{USER}:{quote(PASSWORD, safe='')}@{hosts}" + (more and f"?{more}")

    @property
    def followers(self) -> Sequence[RedisServer]:
        primary = self.primary
        (shard,) = (shard for shard in self._shards if primary in shard)
        return [node for node in shard if node is not primary]

    def fail_over(self) -> None:
        before = self.primary
        self.followers[0].command("CLUSTER", "FAILOVER")
        self.wait_other(before)

    def move_slot(self) -> None:
        """Move our slot, with all that is in it, to the other shard's primary.

        The steps are those of the server's documentation of CLUSTER SETSLOT.
        """
        source = self.primary
        (shard,) = (shard for shard in self._shards if source not in shard)
        target = next(node for node in shard if node.command("ROLE")[0] == b"master")
        target.command("CLUSTER", "SETSLOT", SLOT, "IMPORTING", _id(source))
        source.command("CLUSTER", "SETSLOT", SLOT, "MIGRATING", _id(target))
        route = (target.host, target.port, "", 0, 10_000, "AUTH2", USER, PASSWORD, "KEYS")
        while keys := source.command("CLUSTER", "GETKEYSINSLOT", SLOT, 1):
            source.command("MIGRATE", *route, *keys)
            time.sleep(_PACE)
        for node in (target, source, self._voter):
            node.command("CLUSTER", "SETSLOT", SLOT, "NODE", _id(target))
        self.wait_other(source)

    def _join(self) -> None:
        first = self.nodes[0]
        primaries = (self._voter, *(shard[0] for shard in self._shards))
        for epoch, node in enumerate(primaries, start=1):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        # The middle one has a slot besides: who has none does not vote.
        ranges = ((0, SLOT - 2), (SLOT - 1, SLOT), (SLOT + 1, SLOTS - 1))
        for node, slots in zip(primaries, ranges, strict=True):
            node.command("CLUSTER", "ADDSLOTSRANGE", *slots)
        for node, bus in zip(self.nodes[1:], self._buses[1:], strict=True):
            first.command("CLUSTER", "MEET", node.host, node.port, bus)
        for primary, *replicas in self._shards:
            for replica in replicas:
                wait_until(partial(_follows, replica, primary), 30, "a replica knows its primary")
        wait_until(self._opinions, 30, "everybody knows who has our slot")

    def _opinions(self) -> list[str | None]:
        ranges = self._voter.command("CLUSTER", "SLOTS")
        return [primary[0].decode() for low, high, primary, *_ in ranges if low <= SLOT <= high]

    def _is_whole(self) -> bool:
        return self._replicas() == 2 and all(
            b"cluster_state:ok" in node.command("CLUSTER", "INFO")
            and b"fail" not in node.command("CLUSTER", "NODES")
            for node in self.nodes
        )


def _id(node: RedisServer) -> str:
    return str(node.command("CLUSTER", "MYID").decode())


def _follows(replica: RedisServer, primary: RedisServer) -> bool:
    try:
        replica.command("CLUSTER", "REPLICATE", _id(primary))
    except redis.ResponseError:  # it has not heard of it yet
        return False
    return True
