"""Three nodes of RabbitMQ in containers, any of which may be lost.

As docker/cluster makes them; or older ones as their packagers left them, with no queues.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from uuid import uuid4

from containers import run, wait_for

__all__ = ["NODES", "QUEUE", "Cluster", "docker", "is_whole"]

DOCKER = Path(__file__).parents[2] / "docker" / "cluster"
NODES = ("mq1", "mq2", "mq3")

#: Whose leader is looked for.
QUEUE: Final = "train"

#: As in docker-compose.yml.
TICKS = "-kernel net_ticktime 8"

#: By which nodes know each other.
_SET_COOKIE = "cd /var/lib/rabbitmq && (umask 177; printf test > .erlang.cookie)"

#: Erlang: the name by which its parts know each other.
_NAME: Final = f"""
{{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{QUEUE}">>)),
{{Name, _}} = amqqueue:get_pid(Queue),
"""

#: Erlang: whom they follow. What list_queues says may be who has led it before a node was frozen.
_LEADER: Final = f"{_NAME} {{ok, _, {{_, Leader}}}} = ra:members({{Name, node()}}), Leader."

#: Erlang: a process that keeps who has led the queue since when, in milliseconds, as its node
#: knows. A command in the container for each look would take a second, and half of the machine.
_WATCH: Final = f"""
{_NAME}
Watch = fun Watch(Seen) ->
    Now = case {{ra_leaderboard:lookup_leader(Name), Seen}} of
        {{{{_, Node}}, [{{_, Node}} | _]}} -> Seen;
        {{{{_, Node}}, _}} -> [{{os:system_time(millisecond), Node}} | Seen];
        _ -> Seen
    end,
    receive {{From, tell}} -> From ! {{leaders, Now}} after 10 -> Watch(Now) end
end,
register(synmanager_watch, spawn(fun() -> Watch([]) end)).
"""
_TELL = "synmanager_watch ! {self(), tell}, receive {leaders, Seen} -> Seen end."

#: Of a container that is in one network.
_ADDRESS = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"


class Cluster:
    """The nodes, in a network of their own, each at a port of the loopback that stays the same.

    Args:
        is_ours: the image is this project's, of RabbitMQ 4.3; else an older broker's.
    """

    def __init__(self, image: str, *, is_ours: bool = True) -> None:
        self._is_ours = is_ours
        self._directory = TemporaryDirectory()
        self.name = f"synmanager-cluster-{uuid4().hex[:8]}"
        self._image = image
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in NODES]
        ports = [listener.getsockname()[1] for listener in listeners]
        for listener in listeners:
            listener.close()
        self.ports = dict(zip(NODES, ports, strict=True))
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        self.url = f"amqp://guest:guest@{hosts}/?queues=quorum"

    def __enter__(self) -> Cluster:
        docker("network", "create", self.name)
        for node, port in self.ports.items():
            docker(
                "run",
                "--detach",
                f"--name={self.name}-{node}",
                f"--hostname={node}",
                f"--network={self.name}",
                f"--network-alias={node}",
                f"--publish=127.0.0.1:{port}:5672",
                f"--env=RABBITMQ_NODENAME=rabbit@{node}",
                "--no-healthcheck",
                *(self._ours() if self._is_ours else self._of_others()),
            )
        self.wait_until_whole()
        return self

    def _ours(self) -> list[str]:
        return [
            "--env=ERL_EPMD_ADDRESS=0.0.0.0",  # with which an old one does not start
            "--env=SYNMANAGER_COOKIE=test",
            f"--env=RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS={TICKS}",
            f"--volume={DOCKER / 'cluster.conf'}:/etc/rabbitmq/conf.d/cluster.conf:ro",
            f"--volume={DOCKER / 'definitions.json'}:/etc/rabbitmq/definitions.json:ro",
            self._image,
        ]

    def _of_others(self) -> list[str]:
        """With as much of the configuration as an old one knows."""
        conf = Path(self._directory.name) / "cluster.conf"
        lines = (DOCKER / "cluster.conf").read_text().splitlines()
        known = ("cluster_formation.peer", "cluster_formation.classic", "cluster_part", "queue")
        # Without it, what was cut off, or frozen, has to be restarted by hand.
        lines.append("cluster_partition_handling = pause_minority")
        conf.write_text("".join(f"{line}\n" for line in lines if line.startswith(known)))
        conf.parent.chmod(0o755)
        return [
            "--user=rabbitmq",
            "--stop-signal=SIGKILL",  # Debian's command does not pass on a softer one
            f"--env=RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-rabbit loopback_users [] {TICKS}",
            f"--volume={conf}:/etc/rabbitmq/conf.d/cluster.conf:ro",
            self._image,
            *("sh", "-c", f"{_SET_COOKIE}; exec rabbitmq-server"),
        ]

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()
        run("docker", "rm", "--force", "--volumes", *(f"{self.name}-{node}" for node in NODES))
        run("docker", "network", "rm", self.name)

    def classic(self, name: str) -> str:
        """The URL of a new virtual host, whose queues are classic ones."""
        add = f"rabbitmqctl -q add_vhost {name} --default-queue-type classic"
        allow = f"rabbitmqctl -q set_permissions -p {name} guest '.*' '.*' '.*'"
        docker("exec", f"{self.name}-{NODES[0]}", "sh", "-c", f"{add} && {allow}")
        return self.url.partition("?")[0] + name

    def kill(self, node: str) -> None:
        """As ``kill -9``."""
        docker("kill", f"{self.name}-{node}")

    def stop(self, node: str) -> None:
        """As one upgrades a node, see docs/clusters.md."""
        docker("exec", f"{self.name}-{node}", "rabbitmq-upgrade", "await_online_quorum_plus_one")
        docker("exec", f"{self.name}-{node}", "rabbitmq-upgrade", "drain")
        docker("stop", f"{self.name}-{node}")

    def start(self, node: str) -> None:
        docker("start", f"{self.name}-{node}")

    def freeze(self, node: str) -> None:
        docker("pause", f"{self.name}-{node}")

    def thaw(self, node: str) -> None:
        docker("unpause", f"{self.name}-{node}")

    def cut_off(self, node: str) -> None:
        """Let the others neither hear it nor be heard by it; its clients may still come."""
        self._filter(node, "--append")

    def join(self, node: str) -> None:
        self._filter(node, "--delete")

    def _filter(self, node: str, action: str) -> None:
        pid = docker("inspect", "--format={{.State.Pid}}", f"{self.name}-{node}").strip()
        for other in NODES:
            if other != node:
                there = docker("inspect", f"--format={_ADDRESS}", f"{self.name}-{other}").strip()
                for chain, side in (("INPUT", "--source"), ("OUTPUT", "--destination")):
                    rule = ("iptables", action, chain, side, there, "--jump", "DROP")
                    done = run("nsenter", "--target", pid, "--net", *rule)
                    assert done.returncode == 0, done.stdout

    def leader(self, alive: str) -> str:
        """The node that leads the queue."""
        return self._execute(alive)("rabbitmqctl", "eval", _LEADER).strip().removeprefix("rabbit@")

    @contextmanager
    def watching(self, alive: str) -> Iterator[list[float]]:
        """Watch the queue's leader by a node that lives: when there was a new one is in the list
        at the end, as :func:`time.time` has it.
        """
        execute = self._execute(alive)
        changes: list[float] = []
        execute("rabbitmqctl", "eval", _WATCH)
        try:
            yield changes
        finally:
            seen = re.findall(r"\{(\d+),", execute("rabbitmqctl", "eval", _TELL))
            changes += sorted(int(moment) / 1000 for moment in seen)[1:]

    def wait_until_whole(self) -> None:
        """Wait until each node is there and has a part of each queue that can take over."""
        queues = 8 if self._is_ours else 0
        wait_for(
            lambda: all(is_whole(self._execute(node), queues) for node in NODES),
            "three nodes, and queues on all of them",
        )

    def _execute(self, node: str) -> Callable[..., str]:
        return partial(docker, "exec", f"{self.name}-{node}")


def is_whole(execute: Callable[..., str], queues: int) -> bool:
    """Whether a node sees the others, and so many queues, which all of them have.

    Args:
        execute: runs a command in the node's container.
    """
    try:
        found = _queues(execute)
        others = execute("rabbitmqctl", "eval", "length(nodes()).")
    except AssertionError:  # not up yet
        return False
    if int(others) + 1 < len(NODES) or len(found) < queues:
        return False
    return all(len(online) == len(NODES) for online in found.values())


def _queues(execute: Callable[..., str]) -> dict[str, list[str]]:
    """The nodes that are online of each queue that holds jobs."""
    columns = ("rabbitmqctl", "-q", "--no-table-headers", "list_queues")
    found = {}
    for line in execute(*columns, "name", "online").splitlines():
        name, online = line.split("\t")
        if not name.startswith("~"):
            found[name] = [each for each in NODES if each in online]
    return found


def docker(*arguments: str) -> str:
    done = run("docker", *arguments)
    assert done.returncode == 0, done.stdout
    return done.stdout
