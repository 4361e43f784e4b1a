"""Redis and Valkey, as processes of this machine or in a container."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis
from ports import free_port

from harness.brokers import PASSWORD, USER, Broker
from harness.launchers import Container, HostProcess
from harness.waiting import wait_until

#: What a server is told that shall earn the word "confirmed". Nobody can log in as "default", but
#: it keeps its rights: Redis and Valkey replay what scripts have written under that name, and drop
#: what it may not do (redis/redis 14541, valkey-io/valkey 3983).
_CONFIG = """\
bind {host}
port {port}
dir {directory}/data
appendonly yes
appendfsync always
save ""
user default off ~* &* +@all
user {user} on >{password} ~* &* +@all
"""


class RedisServer(Broker):
    """A server with its own port and directory.

    Args:
        program: "redis-server" or "valkey-server".
        directory: for the server's files.
        image: run it in a container of this image; by default as a process of this machine.
        env: of the process, besides.
        host: its own address, also towards other servers.
        settings: lines of its configuration, besides.
    """

    scheme = "redis"
    path = "0"

    def __init__(
        self,
        name: str,
        program: str,
        directory: Path,
        image: str | None = None,
        env: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
        settings: str = "",
    ) -> None:
        self.host = host
        port = free_port()
        (directory / "data").mkdir()
        self._config = directory / "server.conf"
        self._config.write_text(
            _CONFIG.format(host=host, port=port, directory=directory, user=USER, password=PASSWORD)
            + settings
        )
        self._snapshot = directory / "data" / "dump.rdb"
        command = [program, str(self._config)]
        if image is None:
            super().__init__(name, port, HostProcess(command, env or {}, directory), directory)
        else:
            super().__init__(name, port, Container(image, command, env or {}, directory), directory)
        self._client = redis.Redis(
            host,
            port,
            username=USER,
            password=PASSWORD,
            socket_timeout=5,
            socket_connect_timeout=2,
            # Probing a server that is down must not be prolonged.
            retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        )

    def destroy(self) -> None:
        self._client.close()
        super().destroy()

    def is_ready(self) -> bool:
        try:
            return bool(self._client.ping())
        except redis.RedisError:
            return False

    def reset(self) -> None:
        self._client.replicaof("NO", "ONE")
        self.configure("maxmemory", 0)
        self.configure("maxmemory-policy", "noeviction")
        self._client.flushall()

    def configure(self, name: str, value: str | int) -> None:
        self._client.config_set(name, value)

    def add_stranger(self, user: str, password: str) -> None:
        self.command("ACL", "SETUSER", user, "reset", "on", f">{password}", "+select")

    def listen_with_tls(self, port: int, chain: Path, key: Path) -> None:
        files = ("tls-cert-file", chain, "tls-key-file", key, "tls-ca-cert-file", chain)
        self.command("CONFIG", "SET", "tls-auth-clients", "no", *map(str, files))
        self.command("CONFIG", "SET", "tls-port", port)

    def command(self, *words: Any) -> Any:
        """Any command of Redis."""
        return self._client.execute_command(*words)  # type: ignore[no-untyped-call]

    def fail_snapshot(self) -> None:
        """Have a snapshot fail, after which the server refuses writes (MISCONF)."""
        self._snapshot.unlink(missing_ok=True)
        self._snapshot.mkdir()
        self.configure("save", "3600 1")
        self._take_snapshot("err")

    def mend_snapshot(self) -> None:
        self._snapshot.rmdir()
        self._take_snapshot("ok")
        self.configure("save", "")

    def _take_snapshot(self, expected: str) -> None:
        self._client.bgsave()
        wait_until(
            lambda: self._client.info("persistence")["rdb_last_bgsave_status"] == expected,
            30,
            f"a snapshot ends with {expected}",
        )

    def restart_slowly(self, seconds: float) -> None:
        """Kill it, start it, and have it load its data for about so long: LOADING meanwhile."""
        keys = 3000
        self._client.mset({f"filler:{number}": "x" * 1000 for number in range(keys)})
        rewrites = self._client.info("persistence")["aof_rewrites"]
        self._client.bgrewriteaof()
        wait_until(
            lambda: (
                self._client.info("persistence")["aof_rewrites"] > rewrites
                and not self._client.info("persistence")["aof_rewrite_in_progress"]
            ),
            20,
            "the data are in one file",
        )
        config = self._config.read_text()
        slow = f"key-load-delay {int(seconds * 1e6 / keys)}\n"
        self._config.write_text(f"{config}{slow}loading-process-events-interval-bytes 1024\n")
        try:
            self.restart_after_kill()
        finally:
            self._config.write_text(config)

    def publish_raw(self, queue: str, body: bytes) -> None:
        self.publish_fields(queue, {"body": body})

    def publish_many_raw(self, queue: str, bodies: list[bytes]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for body in bodies:
            pipeline.xadd(_stream(queue), {"body": body})
        pipeline.execute()

    def publish_fields(self, queue: str, fields: Mapping[Any, Any]) -> None:
        """Add an entry that is not even a message."""
        self._client.xadd(_stream(queue), dict(fields))

    def delete_queue(self, queue: str) -> None:
        keys = list(self._client.scan_iter(f"*queue:{queue}:*"))
        assert keys, f"there is no queue {queue}"
        self._client.delete(*keys)

    def destroy_groups(self, queue: str) -> int:
        """XGROUP DESTROY of every group of the queue's streams; return how many."""
        groups = [
            (key, group["name"])
            for key in self._client.scan_iter(f"*queue:{queue}:*", _type="stream")
            for group in self._client.xinfo_groups(key)
        ]
        for key, group in groups:
            self._client.xgroup_destroy(key, group)
        return len(groups)


def _stream(queue: str) -> str:
    return f"{{synmanager}}:queue:{queue}:normal"
