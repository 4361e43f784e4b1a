"""The proxy does what the rows on connections need of it."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest
from harness.waiting import wait_until

from synmanager.testing.proxy import Proxy


class Echo(socketserver.BaseRequestHandler):
    heard: list[bytes]

    def handle(self) -> None:
        try:
            while data := self.request.recv(65536):
                self.heard.append(data)
                self.request.sendall(data)
        except OSError:
            pass


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    monkeypatch.setattr(Echo, "heard", [], raising=False)
    return Echo.heard


@pytest.fixture
def proxy(heard: list[bytes]) -> Iterator[Proxy]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with Proxy(server.server_address[1]) as proxy:
            yield proxy
        server.shutdown()


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        client.settimeout(0.3)  # for what must not come
        yield client


def test_silence(proxy: Proxy, client: socket.socket, heard: list[bytes]) -> None:
    proxy.silence()
    client.sendall(b"lost")
    with pytest.raises(TimeoutError):
        client.recv(100)
    assert heard == [b"hello"]
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as other:
        other.sendall(b"new")
        assert other.recv(100) == b"new"


def test_replies_held_and_a_reset(proxy: Proxy, client: socket.socket, heard: list[bytes]) -> None:
    proxy.hold_replies()
    client.sendall(b"a job")
    wait_until(lambda: b"a job" in heard, 30, "the server has it")
    with pytest.raises(TimeoutError):
        client.recv(100)
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    assert not proxy.connections


def test_delay_keeps_order(proxy: Proxy, client: socket.socket) -> None:
    proxy.delay, proxy.loss, proxy.penalty = 0.05, 0.5, 0.02
    client.settimeout(5)
    began = time.monotonic()
    for number in range(20):
        client.sendall(b"%03d" % number)
    received = b""
    while len(received) < 60:
        received += client.recv(100)
    assert received == b"".join(b"%03d" % number for number in range(20))
    assert time.monotonic() - began >= 0.1


@pytest.mark.parametrize("acted", [False, True], ids=["before", "after"])
def test_a_round_trip_is_cut(
    proxy: Proxy, client: socket.socket, heard: list[bytes], acted: bool
) -> None:
    before = proxy.requests
    is_cut = proxy.cut_round_trip(2, acted=acted)
    client.settimeout(5)
    client.sendall(b"first")
    assert client.recv(100) == b"first"
    client.sendall(b"second")
    with pytest.raises(ConnectionError):
        client.recv(100)
    assert is_cut()
    # It has been sent on; when the server hears it is the server's affair.
    wait_until(lambda: (b"second" in heard) is acted, 30, "the server has it, or never has")
    assert proxy.requests == before + 2
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as other:
        other.sendall(b"new")
        assert other.recv(100) == b"new"


def test_a_cut_that_never_came_is_called_off(proxy: Proxy, client: socket.socket) -> None:
    is_cut = proxy.cut_round_trip(1, acted=False)
    assert not is_cut()
    client.settimeout(5)
    client.sendall(b"again")
    assert client.recv(100) == b"again"


def test_a_frozen_broker_takes_connections_and_answers_after_the_thaw(
    proxy: Proxy, client: socket.socket, heard: list[bytes]
) -> None:
    proxy.freeze()
    client.sendall(b"old")
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as other:
        other.sendall(b"new")
        with pytest.raises(TimeoutError):
            client.recv(100)
        assert heard == [b"hello"]
        proxy.thaw()
        client.settimeout(5)
        assert client.recv(100) == b"old"
        assert other.recv(100) == b"new"
