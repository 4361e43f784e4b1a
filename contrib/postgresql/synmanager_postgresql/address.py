"""What an address means to libpq."""

from __future__ import annotations

import re
from pathlib import Path

from psycopg.conninfo import make_conninfo

from synmanager.backends import Address
from synmanager.backends.options import choice, read_options, text
from synmanager.errors import ConfigurationError

__all__ = ["OPTIONS", "conninfo", "schema_of"]

#: libpq's own names, but for ``schema`` and ``socket``.
OPTIONS = {
    "schema": text,
    "socket": text,
    "sslmode": choice("disable", "prefer", "require", "verify-ca", "verify-full"),
    "sslrootcert": text,
    "sslcert": text,
    "sslkey": text,
}

_FILES = ("sslrootcert", "sslcert", "sslkey")

#: The longest name that PostgreSQL keeps whole is one of 63 bytes.
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,47}")


def schema_of(address: Address) -> str:
    """The schema that the queues are in.

    Raises:
        ConfigurationError: an option is unknown, or not what it should be.
    """
    schema: str = read_options(address, OPTIONS).get("schema", "synmanager")
    if not _SCHEMA.fullmatch(schema) or schema.startswith("pg_"):
        raise ConfigurationError(
            "the option 'schema' must be a name of lower-case letters, digits and _, 48 at most, "
            f"that does not begin with pg_; not {schema!r:.60}"
        )
    return schema


def conninfo(address: Address) -> bytes:
    """libpq's connection string, with the password in it.

    Raises:
        ConfigurationError: an option is not what it should be, or a file cannot be read.
    """
    options = address.options
    socket = options.get("socket")
    if socket is not None:
        if not socket.startswith(("/", "@")):
            raise ConfigurationError(
                "the option 'socket' must be the path of the directory that PostgreSQL's socket "
                "is in, such as /run/postgresql"
            )
        if address.host not in (None, "localhost"):
            raise ConfigurationError("the option 'socket' takes the place of a host; name one")
    for name in _FILES:
        if name in options:
            _check_readable(name, options[name])
    if ("sslcert" in options) != ("sslkey" in options):
        raise ConfigurationError("the options 'sslcert' and 'sslkey' come together")
    # Who names an authority wants it asked, and that is more than libpq would do.
    mode = options.get("sslmode", "verify-full" if "sslrootcert" in options else "prefer")
    if mode.startswith("verify") and "sslrootcert" not in options:
        raise ConfigurationError(
            f"sslmode={mode} needs sslrootcert, the file of the authority to trust, or 'system'"
        )
    patience = max(1, int(1000 * min(address.timeout, 2 * address.heartbeat)))
    given: dict[str, str | int | None] = {
        "host": socket or address.host or "localhost",
        "port": address.port or 5432,
        "user": address.username,
        "password": address.password,
        "dbname": address.path or None,
        "sslmode": mode,
        **{name: options.get(name) for name in _FILES},
        "application_name": "synmanager",
        "client_encoding": "UTF8",
        "target_session_attrs": "read-write",  # a standby would take no job
        "keepalives_idle": max(1, int(address.heartbeat)),
        "keepalives_interval": max(1, int(address.heartbeat / 4)),
        "keepalives_count": 4,
        "tcp_user_timeout": patience,
    }
    return make_conninfo("", **{k: v for k, v in given.items() if v is not None}).encode()


def _check_readable(name: str, path: str) -> None:
    if name == "sslrootcert" and path == "system":
        return
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise ConfigurationError(f"cannot read the {name} {path!r}: {error.strerror}") from None
