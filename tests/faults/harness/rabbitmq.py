"""RabbitMQ, as a process of this machine or in a container."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from ports import free_port

from harness.brokers import PASSWORD, USER, Broker
from harness.launchers import Container, HostProcess
from harness.waiting import wait_until

_BIN = "/usr/lib/rabbitmq/bin"  # Debian's wrappers in /usr/sbin change the user

logging.getLogger("pika").setLevel(logging.CRITICAL)  # probing a broker that is down is no news


class RabbitMQ(Broker):
    """A node of its own: name, ports, directories, and no plugins.

    Args:
        directory: for the server's files.
        image: run it in a container of this image; by default as a process of this machine.
    """

    scheme = "amqp"

    def __init__(self, name: str, directory: Path, image: str | None = None) -> None:
        port, distribution, self._epmd_port = free_port(), free_port(), free_port()
        self._node = f"{name.replace('.', '_')}@localhost"
        directory.chmod(0o777)
        for part in ("data", "log", "home"):
            (directory / part).mkdir()
        definitions = {
            "users": [{"name": USER, "password": PASSWORD, "tags": ["administrator"]}],
            "vhosts": [{"name": "/"}],
            "permissions": [
                {"user": USER, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}
            ],
        }
        (directory / "definitions.json").write_text(json.dumps(definitions))
        (directory / "enabled_plugins").write_text("[].")
        (directory / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{port}\n"
            f"load_definitions = {directory}/definitions.json\n"
            "disk_free_limit.absolute = 1MB\n"
        )
        env = {
            "HOME": f"{directory}/home",
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": f"{directory}/data",
            "RABBITMQ_LOG_BASE": f"{directory}/log",
            "RABBITMQ_CONFIG_FILE": f"{directory}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{directory}/advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{directory}/enabled_plugins",
            "RABBITMQ_PID_FILE": f"{directory}/pid",
            "RABBITMQ_CONF_ENV_FILE": "/nonexistent",
        }
        command = [f"{_BIN}/rabbitmq-server"]
        self._epmd: subprocess.Popen[bytes] | None = None
        if image is None:
            # Left to itself, the node starts a daemon that outlives it.
            self._epmd = subprocess.Popen(
                ["epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1"],
                stdin=subprocess.DEVNULL,
            )
            super().__init__(name, port, HostProcess(command, env, directory), directory)
        else:
            super().__init__(name, port, Container(image, command, env, directory), directory)
        self._vhost = "/"
        self._vhosts = 0

    def destroy(self) -> None:
        super().destroy()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait(10)

    @property
    def path(self) -> str:
        return self._vhost.replace("/", "%2F")

    def is_ready(self) -> bool:
        try:
            # A node that starts accepts and keeps silent; pika would leave such a socket open.
            with socket.create_connection(("127.0.0.1", self.port), 2) as probe:
                probe.sendall(b"AMQP\0\0\x09\x01")
                if not probe.recv(1):
                    return False
            with self.channel():
                return True
        except (pika.exceptions.AMQPError, AMQPConnectorException, OSError):
            return False

    def reset(self) -> None:
        # A new virtual host each time.
        old, self._vhosts = self._vhost, self._vhosts + 1
        self._vhost = f"v{self._vhosts}"
        self.eval(
            f'U = <<"{USER}">>, V = <<"{self._vhost}">>, A = <<".*">>,'
            "rabbit_vhost:add(V, U),"
            "rabbit_auth_backend_internal:set_permissions(U, V, A, A, A, U),"
            f'rabbit_vhost:delete(<<"{old}">>, U),'
            "rabbit_disk_monitor:set_disk_free_limit(1000000),"
            "vm_memory_monitor:set_vm_memory_high_watermark(0.4),"
            "application:set_env(rabbit, consumer_timeout, 1800000),"
            "application:set_env(rabbit, channel_tick_interval, 60000)."
        )
        wait_until(self.is_ready, 60, "the new virtual host is up")

    def eval(self, expression: str) -> str:
        """Evaluate Erlang in the node."""
        # In a fiftieth of the time that rabbitmqctl takes, which starts a node of its own.
        answer = self.launcher.run("erl_call", "-sname", self._node, "-e", text=f"{expression}\n")
        assert answer.startswith("{ok,"), f"{expression} gives {answer}"
        return answer

    def make_queues_of(self, kind: str) -> None:
        """Move to a virtual host where a queue that is declared without a type is of this kind."""
        self._vhosts += 1
        self._vhost = f"v{self._vhosts}-{kind}"
        self.eval(
            f'U = <<"{USER}">>, V = <<"{self._vhost}">>, A = <<".*">>,'
            f'rabbit_vhost:add(V, #{{default_queue_type => <<"{kind}">>}}, U),'
            "rabbit_auth_backend_internal:set_permissions(U, V, A, A, A, U)."
        )
        wait_until(self.is_ready, 60, "the new virtual host is up")

    def add_stranger(self, user: str, password: str) -> None:
        self.eval(
            f'U = <<"{user}">>, N = <<"^$">>, A = <<"{USER}">>,'
            # Who is there already stays.
            f'catch rabbit_auth_backend_internal:add_user(U, <<"{password}">>, A),'
            "rabbit_auth_backend_internal:set_permissions("
            f'U, <<"{self._vhost}">>, N, N, N, A).'
        )

    def forbid(self, user: str, beginning: str) -> None:
        """Let a user do everything but with what has a name that begins so, in an Erlang string."""
        self.eval(
            f'U = <<"{user}">>, V = <<"{self._vhost}">>, A = <<".*">>,'
            f'N = <<"^(?!{beginning}).*">>,'
            f'rabbit_auth_backend_internal:set_permissions(U, V, N, A, N, <<"{USER}">>).'
        )

    def listen_with_tls(self, port: int, chain: Path, key: Path) -> None:
        self.eval(
            "rabbit_networking:ensure_ssl(),"
            f'rabbit_networking:start_ssl_listener({{"127.0.0.1", {port}, inet}},'
            f'[{{cacertfile, "{chain}"}}, {{certfile, "{chain}"}}, {{keyfile, "{key}"}}], 2).'
        )

    def set_acknowledgement_timeout(self, seconds: float) -> None:
        """For channels that are opened from now on; looked at every second."""
        self.eval(
            f"application:set_env(rabbit, consumer_timeout, {int(seconds * 1000)}),"
            "application:set_env(rabbit, channel_tick_interval, 1000)."
        )

    def raise_disk_alarm(self) -> None:
        self.eval("rabbit_disk_monitor:set_disk_free_limit(9000000000000000).")
        self._await_alarm("disk")

    def raise_memory_alarm(self) -> None:
        self.eval("vm_memory_monitor:set_vm_memory_high_watermark(0.00000001).")
        self._await_alarm("memory")

    def end_alarms(self) -> None:
        self.eval(
            "rabbit_disk_monitor:set_disk_free_limit(1000000),"
            "vm_memory_monitor:set_vm_memory_high_watermark(0.4)."
        )
        wait_until(lambda: "resource_limit" not in self._alarms(), 30, "no alarm is left")

    def _await_alarm(self, resource: str) -> None:
        alarm = f"{{resource_limit, {resource},"
        wait_until(lambda: alarm in self._alarms(), 30, f"the {resource} alarm")

    def _alarms(self) -> str:
        return self.eval("rabbit_alarm:get_alarms().")

    def hold_queue(self, queue: str, seconds: float) -> None:
        """Let a queue's process stand still, and find all at once what it was asked meanwhile."""
        self._suspend(queue, f"timer:sleep({int(seconds * 1000)})")

    @contextmanager
    def holding(self, queue: str) -> Iterator[None]:
        """The same, for as long as it takes."""
        self._suspend(queue, "register(synmanager_hold, self()), receive go -> ok end")
        try:
            yield
        finally:
            self.eval("synmanager_hold ! go.")

    def _suspend(self, queue: str, until: str) -> None:
        self.eval(
            f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{self._vhost}">>, queue, '
            f'<<"{queue}">>)), P = case amqqueue:get_pid(Q) of {{Name, _}} -> whereis(Name); '
            "Pid -> Pid end, Us = self(), spawn(fun() -> erlang:suspend_process(P), Us ! held, "
            f"{until}, erlang:resume_process(P) end), receive held -> ok end."
        )

    def publish_raw(self, queue: str, body: bytes) -> None:
        with self.channel() as channel:
            channel.confirm_delivery()
            channel.basic_publish("", queue, body, mandatory=True)

    def publish_with_headers(self, queue: str, body: bytes, headers: dict[str, object]) -> None:
        with self.channel() as channel:
            properties = pika.BasicProperties(headers=headers, delivery_mode=2)
            channel.basic_publish("", queue, body, properties)

    def declare_queue_of_010(self, queue: str) -> None:
        """As the image of 0.1.0 does: durable, classic, no arguments."""
        with self.channel() as channel:
            channel.exchange_declare("SynMQ_topic_logs", "topic", durable=True)
            channel.queue_declare(queue, durable=True)
            channel.queue_bind(queue, "SynMQ_topic_logs", f"SynMQ_topic_{queue}")

    def publish_many_raw(self, queue: str, bodies: list[bytes]) -> None:
        with self.channel() as channel:
            for body in bodies:
                channel.basic_publish("", queue, body)

    def delete_queue(self, queue: str) -> None:
        with self.channel() as channel:
            channel.queue_delete(queue)

    @contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        """A channel of plain pika."""
        parameters = pika.ConnectionParameters(
            "127.0.0.1",
            self.port,
            self._vhost,
            pika.PlainCredentials(USER, PASSWORD),
            socket_timeout=5,
            stack_timeout=15,
            blocked_connection_timeout=5,
        )
        connection = pika.BlockingConnection(parameters)
        try:
            yield connection.channel()
        finally:
            if connection.is_open:
                connection.close()
