"""What pika needs to know, out of an address."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Mapping
from ipaddress import ip_address

import pika

from synmanager.backends.base import Address
from synmanager.backends.options import TLS, Type, choice, read_options
from synmanager.backends.tls import tls_context
from synmanager.errors import ConfigurationError

__all__ = ["connection_parameters", "kind_of_queues", "login"]

_PORTS = {"amqp": 5672, "amqps": 5671}

_OPTIONS: Mapping[str, Type] = {"queues": choice("classic", "quorum")}


def connection_parameters(address: Address) -> list[pika.ConnectionParameters]:
    """Translate an address, for each of its hosts.

    Raises:
        ConfigurationError: an option is unknown, or a file of a certificate cannot be used.
    """
    is_tls = address.scheme == "amqps"
    read_options(address, {**_OPTIONS, **TLS} if is_tls else _OPTIONS, over_tls="amqps")
    tls = tls_context(address.options) if is_tls else None
    return [
        _parameters(address, host, port or _PORTS[address.scheme], tls)
        for host, port in address.hosts or (("localhost", address.port),)
    ]


def _parameters(
    address: Address, host: str, port: int, tls: ssl.SSLContext | None
) -> pika.ConnectionParameters:
    _check_host(host)
    return pika.ConnectionParameters(
        host=host,
        port=port,
        virtual_host=address.path or "/",
        credentials=pika.PlainCredentials(*login(address)),
        heartbeat=max(1, round(address.heartbeat)),
        ssl_options=None if tls is None else pika.SSLOptions(tls, server_hostname=host),
        client_properties={
            "product": "synmanager",
            "connection_name": f"synmanager {socket.gethostname()}:{os.getpid()}",
        },
    )


def login(address: Address) -> tuple[str, str]:
    """User and password: those that RabbitMQ ships with where nobody else is named."""
    if address.username in (None, "", "guest") and address.password is None:
        return "guest", "guest"
    return address.username or "guest", address.password or ""


def kind_of_queues(address: Address) -> str | None:
    """Of which kind new queues are to be; None if that is for their virtual host to say."""
    return address.options.get("queues")


def _check_host(host: str) -> None:
    try:
        host.encode("idna")
        if ":" in host:
            ip_address(host.partition("%")[0])
    except ValueError as error:
        raise ConfigurationError(f"{host!r:.80} is no name of a host: {error}") from None
