"""The brokers of the suite: real servers that it starts, kills, freezes and throws away."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from urllib.parse import quote

from ports import free_port

from harness.certificates import Certificate
from harness.launchers import Launcher
from harness.waiting import wait_until

USER = "faults"

#: The canary. It holds the two characters that a URL needs escaped.
PASSWORD = "canary/Kx7Zq#91"

#: No output of any process, no traceback and no report may contain this part of it.
CANARY = "Kx7Zq"

#: Seconds that a server may take to start on a busy machine.
STARTUP = 90.0


class Broker(ABC):
    """A server, and what only its kind knows how to do.

    Attributes:
        name: of the kind and version, such as "redis-7".
        host: its address, one of the loopback interface.
        port: there.
        directory: its files, in a container at the same place.
    """

    scheme: str
    host = "127.0.0.1"

    def __init__(self, name: str, port: int, launcher: Launcher, directory: Path) -> None:
        self.name = name
        self.port = port
        self.launcher = launcher
        self.directory = directory

    def start(self) -> None:
        """Start it, and wait until it lets a client in."""
        self.launcher.start()
        self.wait_ready()

    def wait_ready(self) -> None:
        wait_until(self.is_ready, STARTUP, f"{self.name} lets a client in")

    def restart_after_kill(self) -> None:
        self.launcher.kill()
        self.start()

    def recover(self) -> None:
        """Undo whatever a test did to it, and forget all messages."""
        if not self.launcher.is_running:
            self.start()
        self.launcher.thaw()
        self.wait_ready()
        self.reset()

    def url(
        self,
        port: int | None = None,
        *,
        user: str = USER,
        password: str = PASSWORD,
        cafile: Path | None = None,
    ) -> str:
        """The address for synmanager.

        Args:
            port: of a proxy, if not its own.
            cafile: speak TLS, and trust this.
        """
        where = f"{self.host}:{port or self.port}/{self.path}"
        secure, options = ("", "") if cafile is None else ("s", f"?cafile={quote(str(cafile))}")
        return f"{self.scheme}{secure}://{quote(user)}:{quote(password, safe='')}@{where}{options}"

    def url_of_a_stranger(self) -> str:
        """The address for a user who is known, and may do nothing."""
        self.add_stranger("stranger", PASSWORD)
        return self.url(user="stranger")

    def serve_tls(self, certificate: Certificate) -> int:
        """Let clients in with TLS as well, until the next start; return the port for that."""
        port = free_port()
        # Of another name each time: the servers keep what they have read.
        chain = self.directory / f"{port}.pem"
        key = self.directory / f"{port}.key"
        shutil.copyfile(certificate.chain, chain)
        shutil.copyfile(certificate.key, key)  # readable for whoever the server runs as
        self.listen_with_tls(port, chain, key)
        return port

    @property
    @abstractmethod
    def path(self) -> str:
        """The URL's path."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it lets a client in and answers it."""

    @abstractmethod
    def reset(self) -> None:
        """Make it as new: no queue, no message, no setting of an earlier test."""

    def destroy(self) -> None:
        """End it for good."""
        self.launcher.destroy()

    @abstractmethod
    def add_stranger(self, user: str, password: str) -> None:
        """Add a user who may log in, and nothing else."""

    @abstractmethod
    def listen_with_tls(self, port: int, chain: Path, key: Path) -> None:
        """:meth:`serve_tls`, with files that the server can read."""

    @abstractmethod
    def publish_many_raw(self, queue: str, bodies: list[bytes]) -> None:
        """:meth:`publish_raw`, as fast as it goes."""

    @abstractmethod
    def publish_raw(self, queue: str, body: bytes) -> None:
        """Put a message into a queue as a foreign program would: the body and nothing else."""

    @abstractmethod
    def delete_queue(self, queue: str) -> None:
        """Delete it under everyone's hands."""
