"""Settings: from an operator's arguments, else the environment, else the default. Read once.

This is the one place that reads environment variables, and it does so when an operator is made.
``docs/settings.md`` lists them all.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from synmanager.backends.base import Address
from synmanager.backends.registry import is_known, known_names, known_schemes, scheme_of
from synmanager.backends.urls import checked_host, checked_port, checked_text
from synmanager.errors import ConfigurationError
from synmanager.message import DEFAULT_MAX_BYTES
from synmanager.text import quoted

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = [
    "LONGEST_TIME_LIMIT",
    "SHORTEST_TIME_LIMIT",
    "VARIABLES",
    "Settings",
    "dashboard_token",
    "in_seconds",
    "load_settings",
    "names_a_backend",
    "parse_url",
    "switch_on_journal",
]

#: The longest that makes sense for any of the times below.
_DAY = 86_400.0

#: Seconds, for ``time_limit``.
SHORTEST_TIME_LIMIT, LONGEST_TIME_LIMIT = 0.1, 30 * _DAY


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
        time_limit: seconds that a job may run for, unless it brings a limit of its own; None
            for as long as it takes.
        journal: what happens to jobs is recorded, where the broker keeps a journal.
        journal_parameters: that tells what a job was given, without its secrets.
    """

    address: Address
    max_attempts: int = 5
    retry_delay: float = 1.0
    reconnect: float | None = None
    grace: float = 25.0
    max_bytes: int = DEFAULT_MAX_BYTES
    time_limit: float | None = None
    journal: bool = True
    journal_parameters: bool = True

    def at(self, host: str | None, port: int | str | None) -> Settings:
        """The same settings for another host and port; None keeps what there is.

        Another host than the first takes the place of all.

        Raises:
            ConfigurationError: no such host or port can be, or it is not said whose the port is.
        """
        address = self.address
        if host is not None and checked_host(host) != address.host:
            address = replace(address, host=checked_host(host), others=())
        if port is not None and checked_port(port) != address.port:
            if address.others:
                raise ConfigurationError(
                    "port is one host's, and the broker's URL names several; write it there"
                )
            address = replace(address, port=checked_port(port))
        return replace(self, address=address)


def load_settings(
    host: str | None = None,
    port: int | str | None = None,
    *,
    url: str | None = None,
    lease: float | None = None,
    max_attempts: int | None = None,
    time_limit: float | timedelta | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Put the settings together.

    Args:
        host, port, url, lease, max_attempts, time_limit: win over the environment's where given.
        environ: read instead of ``os.environ``.

    Raises:
        ConfigurationError: naming the setting and what it must be, never quoting a password.
    """
    environ = os.environ if environ is None else environ
    for variable in VARIABLES:
        if not environ.get(variable, "unset").strip():
            raise ConfigurationError(f"{variable} is set but blank; give it a value or unset it")

    address = parse_url(environ.get("SYNMANAGER_BACKEND", "rabbitmq") if url is None else url)
    if address.scheme == "sqlite" and not address.path:
        address = _with_default_file(address, environ)
    address = _with_credentials(address, environ)

    given: dict[str, Any] = {
        "lease": lease, "max_attempts": max_attempts, "time_limit": time_limit,
    }  # fmt: skip
    timings: dict[str, Any] = {}
    policy: dict[str, Any] = {}
    for variable, (name, check) in _TYPED.items():
        value: Any = given.get(name)
        if value is None:
            value = environ.get(variable)
        if value is not None:
            target = timings if name in _TIMINGS else policy
            target[name] = check(name if given.get(name) is not None else variable, value)
    if not address.scheme.startswith("kombu+"):  # whose transports may need none
        address = replace(address, host=address.host or "localhost")
    if host is not None:
        timings["others"] = ()  # also where it is the first one of the URL
    address = replace(address, **timings)
    return Settings(address, **policy).at(host, port)


def names_a_backend(environ: Mapping[str, str] | None = None) -> bool:
    """Whether the environment says which broker is meant."""
    return "SYNMANAGER_BACKEND" in (os.environ if environ is None else environ)


def dashboard_token(environ: Mapping[str, str] | None = None) -> str | None:
    """What the environment says that a dashboard's visitors must know."""
    token = (os.environ if environ is None else environ).get(_DASHBOARD_TOKEN)
    return token and token.strip()


def switch_on_journal() -> None:
    """Let what is made in this process from now on record what happens, unless told not to.

    For a program that is a process of its own and shows the journal.
    """
    os.environ.setdefault("SYNMANAGER_JOURNAL", "on")


def in_seconds(value: object) -> float:
    """A number or a timedelta as seconds; NaN for anything else, a bool included."""
    if type(value) is float:  # told at once, as every publish asks
        return value
    try:
        if hasattr(value, "total_seconds"):
            value = value.total_seconds()
        # Asked for by what it offers: numpy's numbers are as good as Python's.
        if isinstance(value, bool) or not hasattr(type(value), "__float__"):
            return math.nan
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf
    except Exception:
        return math.nan


def parse_url(url: str) -> Address:
    """Read a broker's URL, or a bare name: of ``registry.NAMES``, or an installed backend's scheme.

    Raises:
        ConfigurationError: never quoting more of the URL than its scheme.
    """
    if not isinstance(url, str) or not url.strip():
        raise ConfigurationError(f"the broker's URL is empty; {_known()}")
    url = url.strip()
    if "://" not in url:
        scheme = scheme_of(url)
        if scheme is None:
            shown = url if url.isalnum() else "what is given"
            raise ConfigurationError(f"{shown} is neither a URL nor a backend's name; {_known()}")
        return Address(scheme)
    address = Address.from_url(url)
    if not is_known(address.scheme):
        raise ConfigurationError(f"no backend is known for {address.scheme!r}://; {_known()}")
    if address.scheme == "unix" and (address.host or address.port):
        raise ConfigurationError("a socket has no host: write unix:///run/redis.sock?db=0")
    if address.scheme == "sqlite" and (address.host or address.username is not None):
        raise ConfigurationError(
            "a file has no host: write sqlite:///jobs.db for one in the working directory, and "
            "sqlite:////data/jobs.db for /data/jobs.db"
        )
    return address


def _with_credentials(address: Address, environ: Mapping[str, str]) -> Address:
    """Fill in what the URL does not say; never one user's password for another user."""
    username = environ.get("SYNMANAGER_USERNAME")
    password = environ.get("SYNMANAGER_PASSWORD")
    for name, value in (("SYNMANAGER_USERNAME", username), ("SYNMANAGER_PASSWORD", password)):
        if value is not None:
            checked_text(name, value)
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


def _with_default_file(address: Address, environ: Mapping[str, str]) -> Address:
    """Name the file of ``sqlite`` alone: where the XDG base directories put a program's state."""
    state = environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # which the specification says is to be ignored
        home = environ.get("HOME") or os.path.expanduser("~")
        state = os.path.join(home, ".local", "state")
    path = os.path.join(state, "synmanager", "jobs.db")
    return replace(address, path=path, options={"mkdir": "true", **address.options})


def _known() -> str:
    names = ", ".join(known_names())
    urls = ", ".join(f"{scheme}://" for scheme in known_schemes())
    return f"known are the names {names} and the URLs {urls}"


def _seconds(low: float, high: float) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        seconds = in_seconds(value)
        if isinstance(value, str):
            try:
                seconds = float(value)
            except ValueError:
                seconds = math.nan
        if not low <= seconds <= high:
            wanted = f"a number of seconds from {low:g} to {high:,.0f}"
            raise ConfigurationError(f"{name} must be {wanted}, not {quoted(value)}")
        return seconds

    return check


def _whole(low: int, high: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = low - 1
        if not low <= number <= high or isinstance(value, float | bool):
            raise ConfigurationError(
                f"{name} must be a whole number from {low:,} to {high:,}, not {quoted(value)}"
            )
        return number

    return check


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, str) or value.lower() not in ("on", "off"):
        raise ConfigurationError(f"{name} must be on or off, not {quoted(value)}")
    return value.lower() == "on"


# variable: (the field of Settings or Address that it sets, what its value must be)
_TYPED: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "SYNMANAGER_LEASE": ("lease", _seconds(0.1, _DAY)),
    "SYNMANAGER_TIMEOUT": ("timeout", _seconds(0.1, 3600)),
    "SYNMANAGER_HEARTBEAT": ("heartbeat", _seconds(1, 3600)),
    "SYNMANAGER_MAX_ATTEMPTS": ("max_attempts", _whole(1, 1_000_000)),
    "SYNMANAGER_RETRY_DELAY": ("retry_delay", _seconds(0, _DAY)),
    "SYNMANAGER_RECONNECT": ("reconnect", _seconds(0, float("inf"))),
    "SYNMANAGER_GRACE": ("grace", _seconds(0, _DAY)),
    "SYNMANAGER_TIME_LIMIT": ("time_limit", _seconds(SHORTEST_TIME_LIMIT, LONGEST_TIME_LIMIT)),
    "SYNMANAGER_MAX_BYTES": ("max_bytes", _whole(1, 128 * 1024 * 1024)),
    "SYNMANAGER_JOURNAL": ("journal", _switch),
    "SYNMANAGER_JOURNAL_PARAMETERS": ("journal_parameters", _switch),
    "SYNMANAGER_JOURNAL_AGE": ("journal_age", _seconds(1, 366 * _DAY)),
    "SYNMANAGER_JOURNAL_BYTES": ("journal_bytes", _whole(64 * 1024, 2**40)),
}

#: The fields of Address among them.
_TIMINGS = ("lease", "timeout", "heartbeat", "journal_age", "journal_bytes")

_DASHBOARD_TOKEN = "SYNMANAGER_DASHBOARD_TOKEN"

#: Every environment variable of ours that is read.
VARIABLES = (
    "SYNMANAGER_BACKEND", "SYNMANAGER_USERNAME", "SYNMANAGER_PASSWORD", *_TYPED, _DASHBOARD_TOKEN,
)  # fmt: skip
