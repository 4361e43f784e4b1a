"""Settings: from an operator's arguments, else the environment, else the default. Read once.

This is the one place that reads environment variables, and it does so when an operator is made.
``docs/settings.md`` lists them all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from synmanager.backends.base import Address
from synmanager.backends.registry import NAMES, known_schemes
from synmanager.errors import ConfigurationError
from synmanager.message import DEFAULT_MAX_BYTES

__all__ = ["VARIABLES", "Settings", "load_settings", "parse_url"]

#: The longest that makes sense for any of the times below.
_DAY = 86_400.0


@dataclass(frozen=True)
class Settings:
    """Everything that an operator, a Worker or an Archiver can be told.

    Attributes:
        address: which broker, where, with which credentials and timings.
        max_attempts: how often a job is started before it becomes a dead letter.
        retry_delay: seconds before the first retry; each further one waits four times as long.
        reconnect: seconds that a call, or a listening consumer, keeps trying to get the broker
            back. None: 60 for a call, without end for a listening consumer.
        grace: seconds that a running job gets to finish after SIGTERM, SIGINT or ``stop()``.
        max_bytes: the longest job, in bytes of JSON, that is sent or accepted.
    """

    address: Address
    max_attempts: int = 5
    retry_delay: float = 1.0
    reconnect: float | None = None
    grace: float = 25.0
    max_bytes: int = DEFAULT_MAX_BYTES

    def at(self, host: str | None, port: int | str | None) -> Settings:
        """The same settings for another host and port; None keeps what there is.

        Raises:
            ConfigurationError: no such host or port can be.
        """
        address = self.address
        if host is not None:
            address = replace(address, host=_host(host))
        if port is not None:
            address = replace(address, port=_port(port))
        return replace(self, address=address)


def load_settings(
    host: str | None = None,
    port: int | str | None = None,
    *,
    url: str | None = None,
    lease: float | None = None,
    max_attempts: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Put the settings together.

    Args:
        host, port, url, lease, max_attempts: win over the environment's where given.
        environ: read instead of ``os.environ``.

    Raises:
        ConfigurationError: naming the setting and what it must be, never quoting a password.
    """
    environ = os.environ if environ is None else environ
    for variable in VARIABLES:
        if not environ.get(variable, "unset").strip():
            raise ConfigurationError(f"{variable} is set but blank; give it a value or unset it")

    address = parse_url(environ.get("SYNMANAGER_BACKEND", "rabbitmq") if url is None else url)
    address = _with_credentials(address, environ)

    given: dict[str, Any] = {"lease": lease, "max_attempts": max_attempts}
    timings: dict[str, Any] = {}
    policy: dict[str, Any] = {}
    for variable, (name, check) in _TYPED.items():
        value: Any = given.get(name)
        if value is None:
            value = environ.get(variable)
        if value is not None:
            target = timings if name in ("lease", "timeout", "heartbeat") else policy
            target[name] = check(name if given.get(name) is not None else variable, value)
    address = replace(address, host=address.host or "localhost", **timings)
    return Settings(address, **policy).at(host, port)


def parse_url(url: str) -> Address:
    """Read a broker's URL, or one of the bare names in ``registry.NAMES``.

    Raises:
        ConfigurationError: never quoting more of the URL than its scheme.
    """
    if not isinstance(url, str) or not url.strip():
        raise ConfigurationError(f"the broker's URL is empty; {_known()}")
    url = url.strip()
    if "://" not in url:
        if url.lower() not in NAMES:
            shown = url if url.isalnum() else "what is given"
            raise ConfigurationError(f"{shown} is neither a URL nor a backend's name; {_known()}")
        return Address(NAMES[url.lower()])
    # Every message below is raised `from None`: the standard library's own would quote the URL.
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigurationError(
            "the broker's URL has no valid host and port (1 to 65535); a password's "
            "special characters must be percent-encoded, such as / as %2F and # as %23"
        ) from None
    _refuse_leaking_password(parts)
    if parts.scheme not in known_schemes():
        raise ConfigurationError(f"no backend is known for {parts.scheme!r}://; {_known()}")
    try:
        pairs = parse_qsl(parts.query, True, strict_parsing=True) if parts.query else []
    except ValueError:
        pairs = [("", "")]
    options = dict(pairs)
    if len(options) < len(pairs) or not all(map(str.strip, (*options, *options.values()))):
        raise ConfigurationError(
            "the broker URL's options, after ?, must read name=value&name=value, each name once"
        )
    return Address(
        parts.scheme,
        host=_host(parts.hostname) if parts.hostname else None,
        port=port if port is None else _port(port),
        username=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
        path=unquote(parts.path[1:]),
        options=options,
    )


def _with_credentials(address: Address, environ: Mapping[str, str]) -> Address:
    """Fill in what the URL does not say; never one user's password for another user."""
    username = environ.get("SYNMANAGER_USERNAME")
    password = environ.get("SYNMANAGER_PASSWORD")
    if address.username is None:
        if username is None and password is not None:
            raise ConfigurationError(
                "SYNMANAGER_PASSWORD is set without SYNMANAGER_USERNAME; for Redis's "
                "requirepass, the user is 'default'"
            )
        if username is not None and password is None:
            raise ConfigurationError("SYNMANAGER_USERNAME is set without SYNMANAGER_PASSWORD")
        return replace(address, username=username, password=password)
    if address.password is None and username in (None, address.username):
        return replace(address, password=password)
    return address


def _refuse_leaking_password(parts: SplitResult) -> None:
    if parts.fragment or "@" in parts.path or "@" in parts.query:
        raise ConfigurationError(
            "the broker's URL has a / ? or # before its last @: in a user name or password, "
            "write / as %2F, ? as %3F and # as %23"
        )


def _known() -> str:
    names = ", ".join(NAMES)
    urls = ", ".join(f"{scheme}://" for scheme in known_schemes())
    return f"known are the names {names} and the URLs {urls}"


def _host(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError("host must be a name or an address, such as 'localhost'")
    if any(mark in value for mark in "/@ \t\n"):
        raise ConfigurationError(
            "host must be a bare name or address; pass a URL as url=, or in SYNMANAGER_BACKEND"
        )
    return value


def _port(value: object) -> int:
    digits = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 9
    if digits or (isinstance(value, int) and not isinstance(value, bool)):
        port = int(value)  # type: ignore[call-overload]
        if 1 <= port <= 65535:
            return int(port)
    raise ConfigurationError(f"port must be a number from 1 to 65535, not {value!r:.50}")


def _seconds(low: float, high: float) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        try:
            seconds = float(value)
        except (TypeError, ValueError):
            seconds = float("nan")
        if not low <= seconds <= high:
            raise ConfigurationError(
                f"{name} must be a number of seconds from {low:g} to {high:g}, not {value!r}"
            )
        return seconds

    return check


def _whole(low: int, high: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = low - 1
        if not low <= number <= high or isinstance(value, float):
            raise ConfigurationError(
                f"{name} must be a whole number from {low:,} to {high:,}, not {value!r}"
            )
        return number

    return check


# variable: (the field of Settings or Address that it sets, what its value must be)
_TYPED: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "SYNMANAGER_LEASE": ("lease", _seconds(0.1, _DAY)),
    "SYNMANAGER_TIMEOUT": ("timeout", _seconds(0.1, 3600)),
    "SYNMANAGER_HEARTBEAT": ("heartbeat", _seconds(1, 3600)),
    "SYNMANAGER_MAX_ATTEMPTS": ("max_attempts", _whole(1, 1_000_000)),
    "SYNMANAGER_RETRY_DELAY": ("retry_delay", _seconds(0, _DAY)),
    "SYNMANAGER_RECONNECT": ("reconnect", _seconds(0, float("inf"))),
    "SYNMANAGER_GRACE": ("grace", _seconds(0, _DAY)),
    "SYNMANAGER_MAX_BYTES": ("max_bytes", _whole(1, 128 * 1024 * 1024)),
}

#: Every environment variable that is read.
VARIABLES = ("SYNMANAGER_BACKEND", "SYNMANAGER_USERNAME", "SYNMANAGER_PASSWORD", *_TYPED)
