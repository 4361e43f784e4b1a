"""Certificates, out of the options of a broker's URL."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from synmanager.backends.options import TLS
from synmanager.errors import ConfigurationError

__all__ = ["tls_context"]


def tls_context(options: Mapping[str, str]) -> ssl.SSLContext:
    """What checks a server's certificate and its host's name, out of the options of ``TLS``.

    Client libraries that are given the files instead read them when they connect, where a wrong
    one looks like a lost connection: for those, too, make this first.

    Raises:
        ConfigurationError: a file cannot be used.
    """
    cafile, certfile, keyfile = (options.get(name) for name in TLS)
    if (certfile is None) != (keyfile is None):
        raise ConfigurationError("the options 'certfile' and 'keyfile' come together")
    try:
        context = ssl.create_default_context(cafile=cafile)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read the cafile {cafile!r}: {_why(error)}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certfile is not None:
        try:
            # The empty password keeps OpenSSL from asking for one at the terminal.
            context.load_cert_chain(certfile, keyfile, password="")
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"cannot use the certfile {certfile!r} with the keyfile {keyfile!r}: {_why(error)}"
            ) from None
    return context


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
