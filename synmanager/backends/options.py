"""The options of a broker's URL, read by their types: one way to refuse them for all drivers.

>>> from synmanager.backends.base import Address
>>> read_options(Address.from_url("nats://host?mkdir=true"), {"mkdir": flag, "stream": text})
{'mkdir': True}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from synmanager.backends.base import Address
from synmanager.errors import ConfigurationError

__all__ = ["TLS", "Type", "choice", "flag", "read_options", "text", "whole"]

#: Makes a value out of what the URL says, or raises ValueError, in words of what it must be.
Type = Callable[[str], Any]


def text(value: str) -> str:
    """Whatever the URL says."""
    return value


def flag(value: str) -> bool:
    """``true`` or ``false``."""
    if value.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return value.lower() == "true"


def whole(least: int, most: int) -> Type:
    """A whole number in these bounds."""

    def read(value: str) -> int:
        if not (value.isascii() and value.isdigit()) or not least <= int(value[:20]) <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return int(value)

    return read


def choice(*words: str) -> Type:
    """One of these words."""

    def read(value: str) -> str:
        if value not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return value

    return read


#: The files of certificates, PEM, that a URL for TLS may name.
TLS: Mapping[str, Type] = {"cafile": text, "certfile": text, "keyfile": text}


def read_options(
    address: Address, types: Mapping[str, Type], *, over_tls: str | None = None
) -> dict[str, Any]:
    """The options that an address has, each as a value of its type.

    Args:
        types: of all options that the driver knows.
        over_tls: the scheme to name where an option of :data:`TLS` is not among them.

    Raises:
        ConfigurationError: an option is unknown, or no value of its type.
    """
    values: dict[str, Any] = {}
    for name, value in address.options.items():
        if name not in types and name in TLS and over_tls is not None:
            raise ConfigurationError(
                f"the option {name!r} needs TLS: {over_tls}://, not {address.scheme}://"
            )
        if name not in types:
            known = f"it has {', '.join(types)}" if types else "it has none"
            raise ConfigurationError(f"{address.scheme}:// has no option {name!r:.50}; {known}")
        try:
            values[name] = types[name](value)
        except ValueError as error:
            raise ConfigurationError(
                f"the option {name!r} must be {error}, not {value!r:.60}"
            ) from None
    return values
