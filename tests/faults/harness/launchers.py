"""Ways to run a server: a process of this machine, or a container."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path


class Launcher(ABC):
    """One server's life. Its data stay from one start to the next."""

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def kill(self) -> None:
        """``kill -9``, and wait for the end."""

    @abstractmethod
    def stop(self) -> None:
        """End it in its own orderly way."""

    @abstractmethod
    def freeze(self) -> None:
        """SIGSTOP."""

    @abstractmethod
    def thaw(self) -> None:
        """SIGCONT. No-op if it runs."""

    @abstractmethod
    def run(self, *command: str, text: str = "") -> str:
        """Run a command beside the server, with a text to read; return what it printed.

        Raises:
            AssertionError: it failed.
        """

    @abstractmethod
    def destroy(self) -> None:
        """End it, whatever state it is in. Idempotent."""

    @property
    @abstractmethod
    def is_running(self) -> bool: ...


class HostProcess(Launcher):
    """A process of this machine, with a process group of its own.

    Args:
        directory: what it prints goes there, to ``output``.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], directory: Path) -> None:
        self._command = command
        self._env = {**os.environ, **env}
        self._output = directory / "output"
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._output.open("ab") as file:
            self._popen = subprocess.Popen(
                self._command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def kill(self) -> None:
        assert self._popen is not None
        self._signal(signal.SIGKILL)
        self._popen.wait(30)

    def stop(self) -> None:
        assert self._popen is not None
        self._signal(signal.SIGTERM)
        self._popen.wait(60)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def run(self, *command: str, text: str = "") -> str:
        return _run(command, self._env, text)

    def destroy(self) -> None:
        if self.is_running:
            self.kill()

    @property
    def is_running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def _signal(self, number: int) -> None:
        assert self._popen is not None
        os.killpg(self._popen.pid, number)


class Container(Launcher):
    """A Docker container in this machine's network.

    Args:
        directory: of this machine; the same path in the container.
    """

    def __init__(
        self,
        image: str,
        command: Sequence[str],
        env: Mapping[str, str],
        directory: Path,
    ) -> None:
        self._create = ["docker", "create", "--network=host", f"--volume={directory}:{directory}"]
        self._create += [f"--env={name}={value}" for name, value in env.items()]
        self._create += ["--ulimit=nofile=16384", image, *command]
        self._id: str | None = None

    def start(self) -> None:
        if self._id is None:
            self._id = _run(self._create).strip()
        _run(["docker", "start", self._id])

    def kill(self) -> None:
        _run(["docker", "kill", self._known()])
        _run(["docker", "wait", self._known()])

    def stop(self) -> None:
        _run(["docker", "stop", "--time=50", self._known()])

    def freeze(self) -> None:
        # On a busy machine runc gives up ("unable to freeze") before the last process has come to
        # rest, and thaws the others again.
        until = time.monotonic() + 30
        while True:
            try:
                _run(["docker", "pause", self._known()])
                return
            except AssertionError as error:
                if "unable to freeze" not in str(error) or time.monotonic() > until:
                    raise

    def thaw(self) -> None:
        if self._state() == "paused":
            _run(["docker", "unpause", self._known()])

    def run(self, *command: str, text: str = "") -> str:
        return _run(["docker", "exec", "--interactive", self._known(), *command], text=text)

    def destroy(self) -> None:
        if self._id is not None:
            _run(["docker", "rm", "--force", "--volumes", self._id])
            self._id = None

    @property
    def is_running(self) -> bool:
        return self._id is not None and self._state() in ("running", "paused")

    def _known(self) -> str:
        assert self._id is not None, "not started"
        return self._id

    def _state(self) -> str:
        return _run(["docker", "inspect", "--format={{.State.Status}}", self._known()]).strip()


def _run(command: Sequence[str], env: Mapping[str, str] | None = None, text: str = "") -> str:
    done = subprocess.run(
        command, env=env, input=text, capture_output=True, text=True, timeout=180, check=False
    )
    output = f"{done.stdout}{done.stderr}"
    assert done.returncode == 0, f"{command[0]} failed with {done.returncode}: {output}"
    return done.stdout
