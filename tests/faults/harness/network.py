"""A network of the suite's own, in which machines can be cut off from each other."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterable
from types import TracebackType
from typing import Final

__all__ = ["Network", "NoNetwork"]

_NEW_NETWORK: Final = 0x4000_0000  # Linux's CLONE_NEWNET

_libc = ctypes.CDLL(None, use_errno=True)


class NoNetwork(Exception):
    """We may not have one here; the message says why."""


class Network:
    """A loopback interface of which nobody else knows, and whose packets can be dropped.

    Entered, it is the network of this thread, and of every process and thread that it starts
    from then on. Each address of 127.0.0.0/8 is a machine to those who use it as their own. What
    is cut is whole again with the last process that lives in there, whatever ends it.
    """

    def __enter__(self) -> Network:
        """Enter it.

        Raises:
            NoNetwork: we are not root, or lack a tool.
        """
        try:
            self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        except OSError as error:
            raise NoNetwork(f"there are no network namespaces: {error}") from None
        if _libc.unshare(_NEW_NETWORK):
            os.close(self._home)
            raise NoNetwork(f"a network namespace is for root: {os.strerror(ctypes.get_errno())}")
        try:
            _run("ip", "link", "set", "lo", "up")
            _run("iptables", "--list-rules")
        except NoNetwork:
            self._leave()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        failed = _libc.setns(self._home, _NEW_NETWORK)
        os.close(self._home)
        # Everything that comes after would be in a network of its own.
        assert not failed, os.strerror(ctypes.get_errno())

    def cut_off(self, machine: str, others: Iterable[str]) -> None:
        """Let a machine neither hear these others nor be heard by them, as if a cable was out."""
        for other in others:
            for source, target in ((machine, other), (other, machine)):
                _run(
                    *("iptables", "--append", "INPUT", "--source", source),
                    *("--destination", target, "--jump", "DROP"),
                )

    def heal(self) -> None:
        """Undo whatever was cut."""
        _run("iptables", "--flush", "INPUT")


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise NoNetwork(f"there is no {command[0]}") from None
    except subprocess.CalledProcessError as error:
        raise NoNetwork(f"{' '.join(command)}: {error.stderr.strip()}") from None
