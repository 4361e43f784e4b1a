"""Which backend serves which URL scheme. Nothing is imported before it is used."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

from synmanager.backends.base import Address, QueueBackend
from synmanager.errors import ConfigurationError

__all__ = [
    "ENTRY_POINT_GROUP",
    "NAMES",
    "create_backend",
    "is_known",
    "known_names",
    "known_schemes",
    "scheme_of",
]

#: Third parties register ``scheme = "package.module:BackendClass"`` under this group.
ENTRY_POINT_GROUP = "synmanager.backends"

#: The bare names that stand for a URL, in ``SYNMANAGER_BACKEND`` and ``--backend``; the scheme of
#: an installed backend is one as well.
NAMES = {
    "rabbitmq": "amqp",
    "redis": "redis",
    "valkey": "valkey",
    "sqlite": "sqlite",
    "memory": "memory",
}

# No package index has synmanager: only whoever installed it knows from where.
_EXTRA = "install synmanager with its extra '{0}', in its checkout with pip install -e '.[{0}]'"
_REDIS_EXTRA = _EXTRA.format("redis")

# Redis and Valkey are one protocol, under either name; then, how the server is found.
_REDIS = [
    *(
        f"{name}{how}"
        for name in ("redis", "rediss", "valkey", "valkeys")
        for how in ("", "+sentinel", "+cluster")
    ),
    "unix",
]

# scheme: (class, the package it needs, what to do where that is missing)
_BUILT_IN = {
    "amqp": ("synmanager.backends.rabbitmq:RabbitMQBackend", "pika", "pip install pika"),
    "amqps": ("synmanager.backends.rabbitmq:RabbitMQBackend", "pika", "pip install pika"),
    **dict.fromkeys(_REDIS, ("synmanager.backends.redis:RedisBackend", "redis", _REDIS_EXTRA)),
    "sqlite": (
        "synmanager.backends.sqlite:SQLiteBackend",
        "sqlite3",
        "install a Python with sqlite3",
    ),
    "memory": ("synmanager.backends.memory:MemoryBackend", "synmanager", ""),
}

# A whole family: kombu+ and the name of a transport.
_KOMBU = ("synmanager.backends.kombu:KombuBackend", "kombu", _EXTRA.format("kombu"))
_KOMBU_PREFIX = "kombu+"


def create_backend(address: Address) -> QueueBackend:
    """Make the backend for an address, without any I/O.

    Raises:
        ConfigurationError: the scheme is unknown, or the driver is not installed.
    """
    built_in = _KOMBU if _is_kombus(address.scheme) else _BUILT_IN.get(address.scheme)
    if built_in is not None:
        path, driver, remedy = built_in
        # kombu, once imported, is a module without a specification, which find_spec refuses.
        if sys.modules.get(driver) is None and find_spec(driver) is None:
            raise ConfigurationError(f"{address.scheme}:// needs the package {driver!r}: {remedy}")
    else:
        path = _third_party().get(address.scheme, "")
        if not path:
            raise ConfigurationError(
                f"no backend is known for {address.scheme!r}; "
                f"known are {', '.join(known_schemes())}"
            )
    module, _, name = path.partition(":")
    factory: type[QueueBackend] = getattr(import_module(module), name)
    return factory(address)


def known_schemes() -> list[str]:
    """Every URL scheme that has a backend, built in or installed; a family by its pattern."""
    return sorted({*_BUILT_IN, *_third_party(), f"{_KOMBU_PREFIX}..."})


def known_names() -> list[str]:
    """Every bare name that stands for a URL."""
    return [*NAMES, *sorted(set(_third_party()) - set(NAMES) - set(_BUILT_IN))]


def scheme_of(name: str) -> str | None:
    """The scheme that a bare name stands for, in any case; None if it is no such name."""
    name = name.lower()
    return NAMES.get(name) or (name if name in known_names() else None)


def is_known(scheme: str) -> bool:
    """Whether a URL scheme has a backend."""
    return scheme in _BUILT_IN or _is_kombus(scheme) or scheme in _third_party()


def _is_kombus(scheme: str) -> bool:
    return scheme.startswith(_KOMBU_PREFIX) and scheme != _KOMBU_PREFIX


def _third_party() -> dict[str, str]:
    # Imported here: it costs more than the rest of the package together.
    from importlib.metadata import entry_points

    return {entry.name: entry.value for entry in entry_points(group=ENTRY_POINT_GROUP)}
