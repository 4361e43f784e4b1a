"""Over TLS a server must be who the URL says: kombu by itself believes any known issuer's."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("kombu", reason="kombu is not installed")

from synmanager.backends import Address
from synmanager.backends.kombu import KombuBackend
from synmanager.errors import AccessRefused, BrokerUnavailable

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is missing")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed one for ``localhost``, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    chain, key = folder / "chain.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", key, "-out", chain, "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-days", "2"],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    return chain, key


@pytest.fixture
def port(certificate: tuple[Path, Path]) -> Iterator[int]:
    """A server that does TLS and then hangs up."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, suppress(OSError), context.wrap_socket(connection, True) as tls:
                    tls.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.mark.parametrize("scheme", ["kombu+amqps", "kombu+rediss"])
@pytest.mark.parametrize(("host", "trusted"), [("localhost", True), ("127.0.0.1", False)])
def test_the_name_must_be_the_certificate_s(
    scheme: str, host: str, trusted: bool, port: int, certificate: tuple[Path, Path]
) -> None:
    options = {"cafile": str(certificate[0])}
    backend = KombuBackend(Address(scheme, host, port, options=options, timeout=5))
    with pytest.raises(BrokerUnavailable if trusted else AccessRefused):
        backend.open()


@pytest.mark.parametrize("scheme", ["kombu+amqps", "kombu+rediss"])
def test_an_issuer_that_nobody_knows_is_refused(scheme: str, port: int) -> None:
    backend = KombuBackend(Address(scheme, "localhost", port, timeout=5))
    with pytest.raises(AccessRefused, match="not valid here"):
        backend.open()
