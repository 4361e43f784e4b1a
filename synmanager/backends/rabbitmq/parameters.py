"""What pika needs to know, out of an address."""

from __future__ import annotations

import os
import socket
import ssl

import pika

from synmanager.backends.base import Address
from synmanager.errors import ConfigurationError

__all__ = ["connection_parameters"]

_PORTS = {"amqp": 5672, "amqps": 5671}
_TLS_OPTIONS = ("cafile", "certfile", "keyfile")


def connection_parameters(address: Address) -> pika.ConnectionParameters:
    """Translate an address.

    Raises:
        ConfigurationError: an option is unknown, or a file of a certificate cannot be used.
    """
    host = address.host or "localhost"
    tls = _tls(address)
    return pika.ConnectionParameters(
        host=host,
        port=address.port or _PORTS[address.scheme],
        virtual_host=address.path or "/",
        credentials=pika.PlainCredentials(address.username or "guest", address.password or "guest"),
        heartbeat=max(1, round(address.heartbeat)),
        ssl_options=None if tls is None else pika.SSLOptions(tls, server_hostname=host),
        client_properties={
            "product": "synmanager",
            "connection_name": f"synmanager {socket.gethostname()}:{os.getpid()}",
        },
    )


def _tls(address: Address) -> ssl.SSLContext | None:
    known = _TLS_OPTIONS if address.scheme == "amqps" else ()
    unknown = sorted(set(address.options) - set(known))
    if unknown:
        raise ConfigurationError(
            f"{address.scheme}:// does not know {', '.join(unknown)}; "
            f"it knows {', '.join(known) or 'no options'}"
        )
    if address.scheme != "amqps":
        return None
    certificate, key = address.options.get("certfile"), address.options.get("keyfile")
    if (certificate is None) != (key is None):
        raise ConfigurationError("certfile and keyfile go together")
    try:
        context = ssl.create_default_context(cafile=address.options.get("cafile"))
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(f"a certificate or key cannot be used: {error}") from None
    return context
