"""URLs of brokers: read, checked, and written so that they can be shown."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from synmanager.errors import ConfigurationError
from synmanager.text import quoted

__all__ = [
    "checked_host",
    "checked_port",
    "checked_text",
    "read_url",
    "spread",
    "written_hosts",
    "written_url",
]

_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}")

#: To whom a host, a port and a user mean nothing.
_HOSTLESS = ("memory", "sqlite")

_AUTHORITY = re.compile(r"[^/?#]*")

#: A user and a password that cannot be another host and its user: commas in the password alone.
_PLAIN_USER = re.compile(r"[^,@:]*:[^@:]*")

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")

#: Not the one that programs seed, so that all of them would try the hosts in the same order.
_CHANCE = random.SystemRandom()


def read_url(url: str) -> dict[str, Any]:
    """What a URL says, as fields of an ``Address``.

    Raises:
        ConfigurationError: it cannot be one; never quoting more of it than its scheme.
    """
    url = url.strip()
    _refuse_ambiguous(url)
    # Every message below is raised `from None`: the standard library's own would quote the URL.
    try:
        url, more = _apart(url)
        parts = urlsplit(url)
        port = parts.port
        others = [(each.hostname, each.port) for each in map(urlsplit, more)]
    except ValueError:
        raise ConfigurationError(
            "the broker's URL has no valid host and port (1 to 65535); a password's "
            "special characters must be percent-encoded, such as / as %2F and # as %23"
        ) from None
    _refuse_leaking_password(parts)
    if not parts.scheme or "://" not in url:
        raise ConfigurationError("the broker's URL must read scheme://host:port/path")
    try:
        pairs = parse_qsl(parts.query, True, strict_parsing=True) if parts.query else []
    except ValueError:
        pairs = [("", "")]
    options = dict(pairs)
    if len(options) < len(pairs) or not all(map(str.strip, (*options, *options.values()))):
        raise ConfigurationError(
            "the broker URL's options, after ?, must read name=value&name=value, each name once"
        )
    for name, value in options.items():
        checked_text(f"the URL's option {quoted(name)}", value)
    if more and not (parts.hostname and all(name for name, _ in others)):
        raise ConfigurationError(
            "the hosts of the broker's URL must read host:port,host:port, none of them empty"
        )
    return {
        "scheme": parts.scheme,
        "host": _host(parts.hostname) if parts.hostname else None,
        "port": port if port is None else checked_port(port),
        "username": None if parts.username is None else _unquoted("user name", parts.username),
        "password": None if parts.password is None else _unquoted("password", parts.password),
        "path": _unquoted("path", parts.path[1:]),
        "options": options,
        "others": tuple(
            (_host(name), number if number is None else checked_port(number))
            for name, number in others
            if name  # as was seen to above
        ),
    }


def _apart(url: str) -> tuple[str, list[str]]:
    """A URL with the first of its hosts alone, and a URL of each other one."""
    scheme, mark, rest = url.partition("://")
    authority = _AUTHORITY.match(rest)
    if not mark or authority is None:
        return url, []
    user, at, hosts = authority[0].rpartition("@")
    first, *others = hosts.split(",")
    alone = f"{scheme}://{user}{at}{first}{rest[authority.end() :]}"
    return alone, [f"//{other}" for other in others]


def _refuse_ambiguous(url: str) -> None:
    """Refuse what would be read without an error, as something else than was meant."""
    if any(mark in url for mark in "\t\r\n"):  # which urlsplit would drop
        raise ConfigurationError(
            "the broker's URL holds a tab or a line break: hosts must read host:port,host:port, "
            "without spaces, and elsewhere they are written %09, %0D and %0A"
        )
    scheme, mark, rest = url.partition("://")
    authority = _AUTHORITY.match(rest)
    if not mark or authority is None:
        return
    user, _, hosts = authority[0].rpartition("@")
    *before, last = hosts.split(",")
    again = last.removesuffix(":")
    if rest.startswith("://", authority.end() - 1) and (
        again.lower() == scheme.lower() or (before and _SCHEME.fullmatch(again))
    ):
        raise ConfigurationError(
            "the scheme of the broker's URL is written once: scheme://user:password@host,host/path"
        )
    if "," in user and not _PLAIN_USER.fullmatch(user):
        raise ConfigurationError(
            "user and password are written once in the broker's URL, before the first host: "
            "scheme://user:password@host,host/path; in a user name or password, write @ as %40, "
            ", as %2C and : as %3A"
        )
    if any(map(str.isspace, hosts)):
        raise ConfigurationError(
            "the hosts of the broker's URL must read host:port,host:port, without spaces"
        )


def _host(name: str) -> str:
    """A host as a URL has it, where the zone of an address follows ``%25``: RFC 6874."""
    address, mark, zone = name.partition("%25")
    return checked_host(f"{address}%{unquote(zone)}" if mark and ":" in address else name)


def written_url(
    scheme: str, hosts: Iterable[tuple[str, int | None]], username: str | None, path: str
) -> str:
    """A URL of what may be shown, every other character percent-encoded."""
    if scheme in _HOSTLESS:
        hosts, username = (), None
    user = "" if username is None else f"{quote(username, safe='')}@"
    where = "" if scheme == "unix" else written_hosts(hosts)
    return f"{scheme}://{user}{where}{'/' if path else ''}{quote(path)}"


def written_hosts(hosts: Iterable[tuple[str, int | None]]) -> str:
    """Hosts as a URL has them: joined by commas, IPv6 in brackets."""
    return ",".join(
        (f"[{name.replace('%', '%25')}]" if ":" in name else name)
        + ("" if port is None else f":{port}")
        for name, port in hosts
    )


def spread(hosts: Iterable[tuple[str, int | None]]) -> list[tuple[str, int | None]]:
    """The hosts in an order in which to try them, another one each time.

    So the clients of a cluster spread over its nodes, and those of a lost node over the others.
    Which of them was good before is for the driver to know. Names are not looked up here: they are
    looked up at each attempt, as what they stand for changes.
    """
    order = list(hosts)
    _CHANCE.shuffle(order)
    return order


def _unquoted(part: str, text: str) -> str:
    try:
        return checked_text(f"the URL's {part}", unquote(text, errors="strict"))
    except UnicodeDecodeError:
        raise ConfigurationError(f"the URL's {part} is not UTF-8, percent-encoded") from None


def checked_text(name: str, text: str) -> str:
    """What a broker can be told; never quoted, as it may be a password.

    Raises:
        ConfigurationError: it is not UTF-8, or holds a null character.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{name} is not text in UTF-8") from None
    if "\0" in text:
        raise ConfigurationError(f"{name} holds a null character")
    return text


def _refuse_leaking_password(parts: SplitResult) -> None:
    if parts.fragment or "@" in parts.path or "@" in parts.query:
        raise ConfigurationError(
            "the broker's URL has a / ? or # before its last @: in a user name or password, "
            "write / as %2F, ? as %3F and # as %23"
        )


def checked_host(value: object) -> str:
    """A name or an address, without the brackets of IPv6.

    Raises:
        ConfigurationError: it cannot be one.
    """
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError("host must be a name or an address, such as 'localhost'")
    if any(mark in value for mark in "/@ \t\n"):
        raise ConfigurationError(
            "host must be a bare name or address; pass a URL as url=, or in SYNMANAGER_BACKEND"
        )
    if "," in value:
        raise ConfigurationError(
            "host must be one host; several are named in a URL: amqp://a:5672,b:5672/"
        )
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    if ":" in bare or bare != value:
        if _is_ipv6(bare):
            return bare
        raise ConfigurationError(
            "host must be a name or an address without a port, which port= takes, and an IPv6 "
            f"address must be whole; not {quoted(value)}"
        )
    try:
        name = value if value.isascii() else value[:254].encode("idna").decode("ascii")
    except UnicodeError:
        name = ""
    labels = [] if len(value) > 254 else name.removesuffix(".").split(".")
    if len(name) > 254 or not labels or not all(map(_LABEL.fullmatch, labels)):
        raise ConfigurationError(
            "host must be a name that can be looked up, labels of 1 to 63 letters, digits, - or _ "
            f"with dots between them, or an address; not {quoted(value)}"
        )
    return value


def _is_ipv6(text: str) -> bool:
    import socket  # which a start without a network need not pay for

    address, _, zone = text.partition("%")
    try:
        socket.inet_pton(socket.AF_INET6, address)
    except (OSError, ValueError):  # ValueError: not ASCII, or a null character
        return False
    return "%" not in text or re.fullmatch(r"[A-Za-z0-9_.~-]+", zone) is not None


def checked_port(value: object) -> int:
    """A number from 1 to 65535.

    Raises:
        ConfigurationError: it is none.
    """
    digits = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 9
    if digits or (isinstance(value, int) and not isinstance(value, bool)):
        port = int(value)  # type: ignore[call-overload]
        if 1 <= port <= 65535:
            return int(port)
    raise ConfigurationError(f"port must be a number from 1 to 65535, not {quoted(value, 50)}")
