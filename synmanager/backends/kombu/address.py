"""What an address means to kombu."""

from __future__ import annotations

import math
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import quote

import kombu
from kombu.transport import get_transport_cls

from synmanager.backends.base import Address
from synmanager.backends.kombu.guarantees import transport_of
from synmanager.backends.options import TLS, Type, flag, read_options, text
from synmanager.backends.tls import tls_context
from synmanager.errors import ConfigurationError

__all__ = ["connection", "patience", "pgmq_conninfo"]

_TLS_SCHEMES = ("kombu+amqps", "kombu+rediss")

#: What each transport has besides ``allow_loss``.
_OPTIONS: dict[str, dict[str, Type]] = {
    "sqs": {"region": text, "tls": flag},
    "pgmq": {"tls": flag, **TLS},
}


def patience(address: Address) -> float:
    """Seconds until a silent server is given up: its timeout, or two heartbeats if that is less."""
    return min(address.timeout, 2 * address.heartbeat)


def connection(address: Address) -> kombu.Connection:
    """kombu's connection for an address, not connected yet.

    Raises:
        ConfigurationError: an option is unknown, a certificate cannot be used, or the transport
            or its client library is not installed.
    """
    name = transport_of(address)
    _options(address, name)
    try:
        get_transport_cls(name)
    except KeyError:
        raise ConfigurationError(f"kombu has no transport {name!r}") from None
    except ImportError as error:
        raise ConfigurationError(f"kombu's transport {name!r} cannot be used: {error}") from None
    options: dict[str, Any] = {
        "transport": name,
        "hostname": address.host or "localhost",
        "port": address.port,
        "userid": address.username,
        "password": address.password,
        "virtual_host": address.path or "/",
        "connect_timeout": address.timeout,
    }
    prepare = _PREPARE.get(name)
    if prepare is not None:
        options |= prepare(address)
    return kombu.Connection(**options)


def _options(address: Address, name: str) -> dict[str, Any]:
    """What the URL says, all of it known and of the right type."""
    known = {"allow_loss": flag, **_OPTIONS.get(name, {})}
    if address.scheme in _TLS_SCHEMES:
        known |= TLS
    secure = "kombu+rediss" if name == "redis" else "kombu+amqps"
    return read_options(address, known, over_tls=secure)


def _tls(address: Address) -> dict[str, str | None] | None:
    return _files(address) if address.scheme in _TLS_SCHEMES else None


def _files(address: Address) -> dict[str, str | None]:
    """Looked into here: a client library would take a bad one for a lost connection."""
    tls_context(address.options)
    return {name: address.options.get(name) for name in TLS}


def _pyamqp(address: Address) -> dict[str, Any]:
    host = address.host or "localhost"
    files = _tls(address)
    return {
        "userid": address.username or "guest",
        "password": address.password or "guest",
        "port": address.port or (5672 if files is None else 5671),
        "heartbeat": max(1, round(address.heartbeat)),
        # Without server_hostname, py-amqp believes any certificate that has a known issuer.
        "ssl": files is not None
        and {
            "cert_reqs": ssl.CERT_REQUIRED,
            "server_hostname": host,
            "ca_certs": files["cafile"],
            "certfile": files["certfile"],
            "keyfile": files["keyfile"],
            "tls_minimum_version": ssl.TLSVersion.TLSv1_2,
        },
        "transport_options": {
            "confirm_publish": True,
            "client_properties": {"product": "synmanager"},
        },
    }


def _redis(address: Address) -> dict[str, Any]:
    files = _tls(address)
    return {
        "virtual_host": address.path or "0",
        "ssl": files is not None
        and {
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_ca_certs": files["cafile"],
            "ssl_certfile": files["certfile"],
            "ssl_keyfile": files["keyfile"],
        },
        "transport_options": {
            "socket_timeout": patience(address),
            "socket_connect_timeout": address.timeout,
            "socket_keepalive": True,
            "health_check_interval": 0,
        },
    }


def _filesystem(address: Address) -> dict[str, Any]:
    if not address.path:
        raise ConfigurationError("kombu+filesystem:// needs a folder: kombu+filesystem:///a/folder")
    folder = Path("/", address.path)
    return {
        "transport_options": {
            "data_folder_in": str(folder / "messages"),
            "data_folder_out": str(folder / "messages"),
            "processed_folder": str(folder / "processed"),
            "control_folder": str(folder / "control"),
        },
    }


def _sqlalchemy(address: Address) -> dict[str, Any]:
    dialect = address.scheme.removeprefix("kombu+").partition("+")[2]
    if not dialect:
        raise ConfigurationError(
            "SQLAlchemy needs a dialect, such as kombu+sqla+sqlite:////an/absolute/path.db"
        )
    login = ""
    if address.username is not None:
        login = quote(address.username, safe="")
        if address.password is not None:
            login += f":{quote(address.password, safe='')}"
        login += "@"
    # A database in a file has no host.
    host = "" if dialect.startswith("sqlite") else address.host or "localhost"
    port = f":{address.port}" if address.port and host else ""
    return {"hostname": f"{dialect}://{login}{host}{port}/{address.path}", "port": None}


def _pgmq(address: Address) -> dict[str, Any]:
    try:
        import pgmq  # noqa: F401
    except ImportError as error:  # which kombu would say when it connects
        raise ConfigurationError(f"kombu's transport 'pgmq' cannot be used: {error}") from None
    pgmq_conninfo(address)
    return {}


def pgmq_conninfo(address: Address) -> str:
    """libpq's connection string, with the password in it."""
    from psycopg.conninfo import make_conninfo

    files = _files(address)
    tls: bool | None = _options(address, "pgmq").get("tls")
    if tls is None and any(files.values()):
        tls = True  # who names an authority wants it asked
    given: dict[str, str | int | None] = {
        "host": address.host or "localhost",
        "port": address.port or 5432,
        "user": address.username,
        "password": address.password,
        "dbname": address.path or "postgres",
        "sslmode": {None: "prefer", True: "verify-full", False: "disable"}[tls],
        "sslrootcert": files["cafile"] or ("system" if tls else None),
        "sslcert": files["certfile"],
        "sslkey": files["keyfile"],
        "connect_timeout": max(1, math.ceil(address.timeout)),
        "application_name": "synmanager",
        "client_encoding": "UTF8",
        "target_session_attrs": "read-write",  # a standby would take no job
        "keepalives_idle": max(1, int(address.heartbeat)),
        "keepalives_interval": max(1, int(address.heartbeat / 4)),
        "keepalives_count": 4,
        "tcp_user_timeout": max(1, int(1000 * patience(address))),
    }
    made = {name: value for name, value in given.items() if value is not None}
    return str(make_conninfo("", **made))


def _sqs(address: Address) -> dict[str, Any]:
    options = _options(address, "sqs")
    limit = patience(address)
    return {
        # Without a host it is Amazon's own, of the region.
        "hostname": address.host,
        "virtual_host": None,
        "transport_options": {
            "region": options.get("region", "us-east-1"),
            "is_secure": options.get("tls", True),
            # 0 is taken for its default of 10.
            "wait_time_seconds": 0,
            "client-config": {
                "connect_timeout": limit,
                "read_timeout": limit,
                "retries": {"total_max_attempts": 1},
            },
        },
    }


def _azureservicebus(address: Address) -> dict[str, Any]:
    week = 7 * 86_400.0
    return {
        # kombu parses it, and undoes no escapes: a key may hold any character.
        "hostname": f"azureservicebus://{address.username}:{address.password}@{address.host}",
        "transport_options": {"use_lock_renewal": True, "max_lock_renewal_duration": week},
    }


def _gcpubsub(address: Address) -> dict[str, Any]:
    raise ConfigurationError(
        "kombu's transport 'gcpubsub' makes queues only by bindings of its own, and has none for "
        "topic exchanges: it cannot carry this project's queues"
    )


_PREPARE = {
    "azureservicebus": _azureservicebus,
    "pyamqp": _pyamqp,
    "redis": _redis,
    "filesystem": _filesystem,
    "gcpubsub": _gcpubsub,
    "pgmq": _pgmq,
    "sqlalchemy": _sqlalchemy,
    "sqs": _sqs,
}
