"""What an address means to redis-py."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Any

from redis.backoff import NoBackoff
from redis.retry import Retry

from synmanager.backends.base import Address
from synmanager.errors import ConfigurationError

__all__ = ["connection_options", "patience", "prefix_of"]

_TLS_OPTIONS = ("cafile", "certfile", "keyfile")


def prefix_of(address: Address) -> str:
    """What the names of all keys begin with.

    Raises:
        ConfigurationError: an option is unknown here, or not what it should be.
    """
    known = ("prefix", *_TLS_OPTIONS) if address.scheme == "rediss" else ("prefix",)
    for name in address.options:
        if name in _TLS_OPTIONS and name not in known:
            raise ConfigurationError(f"the option {name!r} needs TLS: rediss://, not redis://")
        if name not in known:
            raise ConfigurationError(
                f"{address.scheme}:// has no option {name!r}; it has {', '.join(known)}"
            )
    prefix = address.options.get("prefix", "synmanager")
    # It becomes the hash tag, which a brace would end.
    if not prefix or "{" in prefix or "}" in prefix:
        raise ConfigurationError("the option 'prefix' must be a name without braces")
    return prefix


def patience(address: Address) -> float:
    """Seconds until a silent server is given up: its timeout, or two heartbeats if that is less."""
    return min(address.timeout, 2 * address.heartbeat)


def connection_options(address: Address) -> dict[str, Any]:
    """The arguments of redis-py's connection class.

    Raises:
        ConfigurationError: the path is no database number, or a certificate cannot be used.
    """
    if not re.fullmatch(r"[0-9]{0,9}", address.path):
        raise ConfigurationError(
            f"the path of {address.scheme}:// is the number of a database, such as /0"
        )
    options: dict[str, Any] = {
        "host": address.host or "localhost",
        "port": address.port or 6379,
        "db": int(address.path or 0),
        "username": address.username,
        "password": address.password,
        "socket_connect_timeout": address.timeout,
        "socket_timeout": patience(address),
        "socket_keepalive": True,
        # Said out loud, because the defaults differ between versions of redis-py.
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
    }
    if address.scheme == "rediss":
        options |= _tls_options(address.options)
    return options


def _tls_options(options: Mapping[str, str]) -> dict[str, Any]:
    cafile, certfile, keyfile = (options.get(name) for name in _TLS_OPTIONS)
    if (certfile is None) != (keyfile is None):
        raise ConfigurationError("the options 'certfile' and 'keyfile' come together")
    # redis-py reads the files when it connects, where a wrong one looks like a lost connection.
    try:
        context = ssl.create_default_context(cafile=cafile)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read the cafile {cafile!r}: {_why(error)}") from None
    if certfile is not None:
        try:
            # The empty password keeps OpenSSL from asking for one at the terminal.
            context.load_cert_chain(certfile, keyfile, password="")
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"cannot use the certfile {certfile!r} with the keyfile {keyfile!r}: {_why(error)}"
            ) from None
    return {
        "ssl_ca_certs": cafile,
        "ssl_certfile": certfile,
        "ssl_keyfile": keyfile,
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_min_version": ssl.TLSVersion.TLSv1_2,
    }


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
