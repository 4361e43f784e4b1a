"""Which backend serves which URL scheme. Nothing is imported before it is used."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from synmanager.backends.base import Address, QueueBackend
from synmanager.errors import ConfigurationError

__all__ = ["ENTRY_POINT_GROUP", "NAMES", "create_backend", "known_schemes"]

#: Third parties register ``scheme = "package.module:BackendClass"`` under this group.
ENTRY_POINT_GROUP = "synmanager.backends"

#: The bare names that stand for a URL, in ``SYNMANAGER_BACKEND`` and ``--backend``.
NAMES = {"rabbitmq": "amqp", "redis": "redis", "memory": "memory"}

# No package index has synmanager: only whoever installed it knows from where.
_REDIS_EXTRA = (
    "install synmanager with its extra 'redis', in its checkout with pip install -e '.[redis]'"
)

# scheme: (class, the package it needs, what to do where that is missing)
_BUILT_IN = {
    "amqp": ("synmanager.backends.rabbitmq:RabbitMQBackend", "pika", "pip install pika"),
    "amqps": ("synmanager.backends.rabbitmq:RabbitMQBackend", "pika", "pip install pika"),
    "redis": ("synmanager.backends.redis:RedisBackend", "redis", _REDIS_EXTRA),
    "rediss": ("synmanager.backends.redis:RedisBackend", "redis", _REDIS_EXTRA),
    "memory": ("synmanager.backends.memory:MemoryBackend", "synmanager", ""),
}


def create_backend(address: Address) -> QueueBackend:
    """Make the backend for an address, without any I/O.

    Raises:
        ConfigurationError: the scheme is unknown, or the driver is not installed.
    """
    if address.scheme in _BUILT_IN:
        path, driver, remedy = _BUILT_IN[address.scheme]
        if find_spec(driver) is None:
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
    """Every URL scheme that has a backend, built in or installed."""
    return sorted({*_BUILT_IN, *_third_party()})


def _third_party() -> dict[str, str]:
    # Imported here: it costs more than the rest of the package together.
    from importlib.metadata import entry_points

    return {entry.name: entry.value for entry in entry_points(group=ENTRY_POINT_GROUP)}
