"""Which broker a command talks to, and how that is said."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import click

from synmanager.backends.base import Address, QueueBackend
from synmanager.backends.registry import create_backend, known_schemes
from synmanager.settings import load_settings
from synmanager.terminal import complain

__all__ = [
    "are_one_broker",
    "backend_option",
    "connected",
    "note",
    "refuse_what_ends_here",
    "schemes",
    "tell",
]

Command = TypeVar("Command", bound=Callable[..., Any])

#: Of each scheme: the one without TLS, the ports that servers listen at for both, and the path
#: that none stands for.
_SERVERS = {
    "amqp": ("amqp", (5672, 5671), "/"),
    "amqps": ("amqp", (5672, 5671), "/"),
    "redis": ("redis", (6379,), "0"),
    "rediss": ("redis", (6379,), "0"),
    "valkey": ("redis", (6379,), "0"),
    "valkeys": ("redis", (6379,), "0"),
    "redis+sentinel": ("sentinel", (26379,), ""),
    "rediss+sentinel": ("sentinel", (26379,), ""),
    "valkey+sentinel": ("sentinel", (26379,), ""),
    "valkeys+sentinel": ("sentinel", (26379,), ""),
    "redis+cluster": ("cluster", (6379,), "0"),
    "rediss+cluster": ("cluster", (6379,), "0"),
    "valkey+cluster": ("cluster", (6379,), "0"),
    "valkeys+cluster": ("cluster", (6379,), "0"),
}

#: Those that are no host's.
_HERE = ("memory", "sqlite", "unix")

#: What says how to get there, and not where.
_NO_PLACE = (
    "cafile",
    "certfile",
    "keyfile",
    "mkdir",
    "queues",
    "replicas",
    "sentinel_password",
    "sentinel_username",
)


def schemes() -> str:
    """What a URL may begin with."""
    return ", ".join(f"{scheme}://" for scheme in known_schemes())


class _Backend(click.Option):
    """An option whose help names the schemes, for which the entry points must be read."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        self.help = f"{schemes()}, or a bare name such as redis. [default: $SYNMANAGER_BACKEND]"
        return super().get_help_record(ctx)


def backend_option(command: Command) -> Command:
    """Give a command ``--backend``; its argument of that name is the URL, or None."""
    return click.option("--backend", "backend", metavar="URL", cls=_Backend)(command)


def are_one_broker(one: Address, other: Address) -> bool:
    """Whether two addresses mean the same queues, as far as can be told without asking there.

    Not told: a proxy in between, a host's addresses that its names do not give, TLS at a port of
    its own choice.
    """
    return _place(one) == _place(other) and not _hosts(one).isdisjoint(_hosts(other))


def _place(address: Address) -> tuple[Any, ...]:
    options = {name: text for name, text in address.options.items() if name not in _NO_PLACE}
    if address.scheme in _HERE:
        path = address.path
        if address.scheme != "memory":
            path = os.path.realpath(f"/{path}" if address.scheme == "unix" else path)
        return address.scheme, path, options
    if address.scheme not in _SERVERS:
        return address.scheme, address.username, address.path, options
    scheme, _, no_path = _SERVERS[address.scheme]
    if scheme != "amqp" and options.get("prefix") == "synmanager":
        del options["prefix"]  # it is the default
    return scheme, address.path or no_path, options


def _hosts(address: Address) -> set[tuple[str, int | None]]:
    """The addresses of all hosts, each with its port; the name alone if nobody knows any."""
    if address.scheme in _HERE:
        return {("", None)}
    import socket

    _, ports, _ = _SERVERS.get(address.scheme, ("", (), ""))
    places: set[tuple[str, int | None]] = set()
    for name, number in address.hosts or (("localhost", address.port),):
        host = name.lower().rstrip(".")
        port = ports[0] if ports and number in (None, *ports) else number
        places.add((host, port))
        with suppress(OSError, UnicodeError):
            places.update((str(found[4][0]), port) for found in socket.getaddrinfo(host, None))
    return places


def refuse_what_ends_here(address: Address) -> None:
    """For a command that puts jobs somewhere.

    Raises:
        click.ClickException: they would be gone with this process, as nobody else in it uses that
            memory.
    """
    if address.scheme != "memory":
        return
    from synmanager.backends.memory import is_in_use

    if not is_in_use(address):
        raise click.ClickException(
            "memory:// is this command's own, and what is put there would be gone when it ends; "
            "name another broker, such as sqlite"
        )


def note(
    broker: QueueBackend,
    url: str | None,
    kind: str,
    at: float,
    number: int,
    ids: Iterable[str] = (),
    **about: Any,
) -> None:
    """Have the journal tell what was done here, and by whom; see ``journal.actions.acted``.

    Args:
        url: as for :func:`connected`.
    """
    if not (broker.features.journal and load_settings(url=url).journal):
        return
    from synmanager.journal.actions import acted, record
    from synmanager.journal.events import source

    events = acted(kind, source("command"), at, number, set(ids), **about)
    record(lambda write: write(broker), events)


def tell(address: Address) -> None:
    """Say on standard error which broker it is."""
    complain(f"broker: {address.safe_url}")


@contextmanager
def connected(url: str | None, *, say: bool = True, **fields: Any) -> Iterator[QueueBackend]:
    """A connection for a ``with`` block.

    Args:
        url: None for the environment's.
        fields: of the address, to differ in.
    """
    from dataclasses import replace

    address = replace(load_settings(url=url).address, **fields)
    if say:
        tell(address)
    backend = create_backend(address)
    try:
        backend.open()
        yield backend
    finally:
        backend.close()
