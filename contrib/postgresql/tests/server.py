"""A PostgreSQL server of the tests' own: in a directory that is thrown away, as Debian has it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psycopg
from harness.brokers import PASSWORD, STARTUP, USER, Broker
from harness.catalogue import Missing
from harness.launchers import HostProcess
from harness.waiting import wait_until
from ports import free_port
from psycopg import sql

#: The database that the queues are in.
DATABASE = "jobs"

_ACCESS = """
local    all all                trust
hostnossl all all 127.0.0.1/32  scram-sha-256
hostssl  all all 127.0.0.1/32   scram-sha-256
"""

_SETTINGS = """
listen_addresses = '127.0.0.1'
max_connections = 200
shared_buffers = 32MB
fsync = on
"""


def programs() -> Path:
    """Where ``initdb`` and ``postgres`` are.

    Raises:
        Missing: nowhere.
    """
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: path.parts[-3]
    )
    if found:
        return found[-1].parent
    there = shutil.which("postgres")
    if there is None:
        raise Missing("there is no PostgreSQL server: apt-get install postgresql")
    return Path(there).resolve().parent


class _Postgres(HostProcess):
    """The server with the processes that it has started, each of which leads a session."""

    def kill(self) -> None:
        self._signal(signal.SIGSTOP)  # so that it starts no other
        family = self._children()
        self._signal(signal.SIGKILL)
        assert self._popen is not None
        self._popen.wait(10)
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _signal(self, number: int) -> None:
        super()._signal(number)
        if number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in self._children():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def _children(self) -> list[int]:
        assert self._popen is not None
        pid = self._popen.pid
        try:
            return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except FileNotFoundError:
            return []


class PostgreSQL(Broker):
    """A server of the tests' own.

    Raises:
        Missing: it is not on this machine.
    """

    scheme = "postgresql"
    path = DATABASE

    def __init__(self) -> None:
        binaries = programs()
        # Not below pytest's directories, which the server's user may not enter.
        directory = Path(tempfile.mkdtemp(prefix="synmanager-postgresql-", dir="/tmp"))
        as_user: list[str] = []
        if os.geteuid() == 0:  # as whom PostgreSQL refuses to run
            user = pwd.getpwnam("postgres")
            os.chown(directory, user.pw_uid, user.pw_gid)
            as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}"]
            as_user.append("--clear-groups")
        port = free_port()
        data = directory / "data"
        command = [*as_user, str(binaries / "postgres"), "-D", str(data), "-p", str(port)]
        command += ["-k", str(directory)]
        launcher = _Postgres(command, {"LC_ALL": "C", "TZ": "UTC"}, directory)
        super().__init__("postgresql", port, launcher, directory)
        options = ["-U", "postgres", "-E", "UTF8", "--locale=C", "--auth=trust", "--no-sync"]
        made = subprocess.run(
            [*as_user, str(binaries / "initdb"), "-D", str(data), *options],
            env={**os.environ, "LC_ALL": "C"},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        (data / "pg_hba.conf").write_text(_ACCESS)
        with (data / "postgresql.conf").open("a") as file:
            file.write(_SETTINGS)

    def start(self) -> None:
        deadline = time.monotonic() + STARTUP
        while True:
            self.launcher.start()
            wait_until(lambda: self.is_ready() or not self.launcher.is_running, STARTUP, "it runs")
            if self.launcher.is_running:
                break
            # Killed, it may leave processes behind that have not ended yet.
            assert time.monotonic() < deadline, (self.directory / "output").read_text()[-2000:]
        if not self.execute(
            "SELECT 1 FROM pg_database WHERE datname = %s", DATABASE, db="postgres"
        ):
            self.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                    sql.Identifier(USER), sql.Literal(PASSWORD)
                ),
                db="postgres",
            )
            self.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(
                    sql.Identifier(DATABASE), sql.Identifier(USER)
                ),
                db="postgres",
            )

    def execute(
        self, statement: str | sql.Composed, *parameters: object, db: str = DATABASE
    ) -> list[tuple[object, ...]]:
        """As another program does, with psycopg alone, and as the superuser."""
        with psycopg.connect(
            host=str(self.directory), port=self.port, user="postgres", dbname=db, autocommit=True
        ) as connection:
            cursor = connection.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def is_ready(self) -> bool:
        try:
            return bool(self.execute("SELECT 1", db="postgres"))
        except psycopg.Error:
            return False

    def reset(self) -> None:
        self.execute("DROP SCHEMA IF EXISTS synmanager CASCADE")

    def destroy(self) -> None:
        super().destroy()
        shutil.rmtree(self.directory, ignore_errors=True)

    def add_stranger(self, user: str, password: str) -> None:
        if not self.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", user):
            self.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                    sql.Identifier(user), sql.Literal(password)
                )
            )

    def listen_with_tls(self, port: int, chain: Path, key: Path) -> None:
        raise AssertionError("PostgreSQL speaks TLS on its one port: see use_tls")

    def use_tls(self, chain: Path, key: Path) -> None:
        """Let clients in with TLS as well, from now on."""
        for path in (chain, key):
            kept = self.directory / path.name
            shutil.copyfile(path, kept)
            shutil.chown(kept, *((self.directory.owner(), self.directory.group())))
            kept.chmod(0o600)
        self.execute(f"ALTER SYSTEM SET ssl_cert_file = '{self.directory / chain.name}'")
        self.execute(f"ALTER SYSTEM SET ssl_key_file = '{self.directory / key.name}'")
        self.execute("ALTER SYSTEM SET ssl = on")
        self.execute("SELECT pg_reload_conf()")

    def publish_raw(self, queue: str, body: bytes) -> None:
        self.publish_many_raw(queue, [body])

    def publish_many_raw(self, queue: str, bodies: list[bytes]) -> None:
        for body in bodies:
            self.execute(
                "INSERT INTO synmanager.jobs (queue, body) "
                "SELECT queue, %s FROM synmanager.queues WHERE name = %s",
                body,
                queue,
            )

    def delete_queue(self, queue: str) -> None:
        self.execute("DELETE FROM synmanager.queues WHERE name = %s", queue)
