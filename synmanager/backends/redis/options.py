"""What an address means to redis-py."""

from __future__ import annotations

import re
import ssl
from typing import Any

from redis.backoff import NoBackoff
from redis.retry import Retry

from synmanager.backends.base import Address
from synmanager.backends.options import TLS, Type, read_options, text, whole
from synmanager.backends.redis.faults import SENTINELS
from synmanager.backends.redis.guides import SENTINEL_PORT
from synmanager.backends.tls import tls_context
from synmanager.backends.urls import written_hosts
from synmanager.errors import ConfigurationError

__all__ = [
    "CLUSTER_SCHEMES",
    "SENTINEL_SCHEMES",
    "connection_options",
    "guide_options",
    "has_tls",
    "patience",
    "place",
    "prefix_of",
    "primary_name",
    "replicas_of",
    "silence",
]

#: Redis's and Valkey's names for the same; the second of each with TLS.
_NAMES = ("redis", "rediss", "valkey", "valkeys")
SENTINEL_SCHEMES = tuple(f"{name}+sentinel" for name in _NAMES)
CLUSTER_SCHEMES = tuple(f"{name}+cluster" for name in _NAMES)

#: Seconds, at most: for an attempt to connect where there is somebody else to ask, for an answer
#: of a Sentinel's, and until the Sentinels are asked about a server that is silent.
_ATTEMPT, _ANSWER, _SILENCE = 5.0, 2.0, 3.0


def has_tls(address: Address) -> bool:
    """Whether the scheme is one with TLS, at the Sentinels as well."""
    return address.scheme.partition("+")[0] in ("rediss", "valkeys")


def prefix_of(address: Address) -> str:
    """What the names of all keys begin with.

    Raises:
        ConfigurationError: an option is unknown here, or not what it should be.
    """
    options = _options(address)
    prefix: str = options.get("prefix", "synmanager")
    # It becomes the hash tag, which a brace would end.
    if not prefix or "{" in prefix or "}" in prefix:
        raise ConfigurationError("the option 'prefix' must be a name without braces")
    return prefix


def replicas_of(address: Address) -> int:
    """How many replicas must have what counts as confirmed.

    Raises:
        ConfigurationError: the option is no such number.
    """
    replicas: int = _options(address).get("replicas", 0)
    return replicas


def place(address: Address) -> str:
    """Where the server is, for messages."""
    if address.scheme == "unix":
        return f"/{address.path}"
    if address.scheme in SENTINEL_SCHEMES:
        sentinels = written_hosts((host, port or SENTINEL_PORT) for host, port in address.hosts)
        return f"{_primary_and_database(address)[0]}{SENTINELS}{sentinels})"
    if address.scheme in CLUSTER_SCHEMES:
        return f"the cluster of {written_hosts(address.hosts)}"
    return written_hosts([(address.host or "localhost", address.port or 6379)])


def patience(address: Address) -> float:
    """Seconds until a silent server is given up: its timeout, or two heartbeats if that is less."""
    return min(address.timeout, 2 * address.heartbeat)


def silence(address: Address) -> float:
    """Seconds until the Sentinels are asked about a server that is silent.

    Who holds a job has to be back at the new primary well before others there believe that its
    lease has run out, for which they watch that server for half a lease.
    """
    return min(_SILENCE, address.lease / 8)


def connection_options(address: Address) -> dict[str, Any]:
    """The arguments of redis-py's connection class.

    Raises:
        ConfigurationError: the path is no database number, or a certificate cannot be used.
    """
    path = address.path
    if address.scheme == "unix":
        path = address.options.get("db", "")
    elif address.scheme in SENTINEL_SCHEMES:
        path = _primary_and_database(address)[1]
    if not re.fullmatch(r"[0-9]{0,9}", path):
        if address.scheme == "unix":
            raise ConfigurationError("the option 'db' is the number of a database, such as db=0")
        before = "/mymaster" if address.scheme in SENTINEL_SCHEMES else ""
        raise ConfigurationError(
            f"the path of {address.scheme}:// is the number of a database, such as {before}/0"
        )
    options: dict[str, Any] = {
        "db": int(path or 0),
        "username": address.username,
        "password": address.password,
        "socket_connect_timeout": address.timeout,
        "socket_timeout": patience(address),
        # Said out loud, because the defaults differ between versions of redis-py.
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
    }
    if address.scheme == "unix":
        if not address.path:
            raise ConfigurationError("the path of unix:// is the server's socket")
        return options | {"path": f"/{address.path}"}
    options["socket_keepalive"] = True
    if address.scheme in CLUSTER_SCHEMES and options["db"]:
        raise ConfigurationError(f"a cluster has no other database than 0: {address.scheme}://…/0")
    if address.scheme in (*SENTINEL_SCHEMES, *CLUSTER_SCHEMES):
        limit = max(1.0, min(_ATTEMPT, address.lease / 8))
        options["socket_connect_timeout"] = min(address.timeout, limit)
    else:
        options |= {"host": address.host or "localhost", "port": address.port or 6379}
    if has_tls(address):
        tls_context(address.options)
        options |= {
            "ssl_ca_certs": address.options.get("cafile"),
            "ssl_certfile": address.options.get("certfile"),
            "ssl_keyfile": address.options.get("keyfile"),
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_min_version": ssl.TLSVersion.TLSv1_2,
        }
    return options


def guide_options(address: Address) -> dict[str, Any]:
    """The arguments of redis-py's connection class for a question where our server is."""
    limit = min(address.timeout, max(0.5, min(_ANSWER, address.lease / 12)))
    limits = {"db": 0, "socket_connect_timeout": limit, "socket_timeout": limit}
    options = connection_options(address) | limits
    if address.scheme in SENTINEL_SCHEMES:
        options["username"] = address.options.get("sentinel_username")
        options["password"] = address.options.get("sentinel_password")
    return options


def primary_name(address: Address) -> str:
    """What the Sentinels call the primary."""
    return _primary_and_database(address)[0]


def _primary_and_database(address: Address) -> tuple[str, str]:
    name, _, database = address.path.partition("/")
    # Who forgot the name would look for a primary that is called by the database's number.
    if not name or (not database and name.isdecimal()):
        raise ConfigurationError(
            f"the path of {address.scheme}:// is the name that the Sentinels have for the primary, "
            "and the number of a database: /mymaster/0"
        )
    return name, database


def _options(address: Address) -> dict[str, Any]:
    types: dict[str, Type] = {"prefix": text, "replicas": whole(0, 99)}
    if has_tls(address):
        types |= TLS
    if address.scheme in SENTINEL_SCHEMES:
        types |= {"sentinel_username": text, "sentinel_password": text}
    if address.scheme == "unix":
        types["db"] = text
    family, plus, how = address.scheme.partition("+")
    over_tls = None if family == "unix" else f"{family}s{plus}{how}"
    return read_options(address, types, over_tls=over_tls)
