"""What RabbitMQ's management API is asked, and what is made of its answers."""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from synmanager.backends import Address
from synmanager.backends.rabbitmq import management
from synmanager.backends.rabbitmq.management import Node, copies, nodes

HERE = Address("amqp", "127.0.0.1", username="ops", password="päss", path="the grid")


class Api(HTTPServer):
    status = 200
    answer: Any = ()
    asked: tuple[str, str | None] = ("", None)


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        self.server.asked = (self.path, self.headers["Authorization"])
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(json.dumps(self.server.answer).encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with Api(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setattr(management, "_PORTS", {"amqp": ("http", server.server_port)})
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")  # which is not for this
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("address", "user"),
    [(Address("amqp", "127.0.0.1"), "guest:guest"), (replace(HERE, password=""), "ops:")],
)
def test_it_is_asked_as_the_user_who_connects(api: Api, address: Address, user: str) -> None:
    nodes(address, 10.0)
    assert api.asked[1] == "Basic " + b64encode(user.encode()).decode()


def test_on_how_many_nodes_a_queue_lies(api: Api) -> None:
    api.answer = [
        {"name": "train", "members": ["a", "b", "c"], "online": ["a", "b"]},
        {"name": "classic"},
    ]
    assert copies(HERE, 10.0) == {"train": (3, 2)}
    path, user = api.asked
    assert path == "/api/queues/the%20grid?columns=name,members,online"
    assert user == "Basic " + b64encode("ops:päss".encode()).decode()


def test_how_much_room_a_node_has(api: Api) -> None:
    running = {
        "name": "rabbit@a", "running": True, "mem_used": 1, "mem_limit": 2, "mem_alarm": False,
        "disk_free": 3, "disk_free_limit": 4, "disk_free_alarm": True,
    }  # fmt: skip
    api.answer = [running, {"name": "rabbit@b", "running": False}]
    assert nodes(HERE, 10.0) == [Node("rabbit@a", ("disk",), 1, 2, 3, 4)]
    assert api.asked[0].startswith("/api/nodes?columns=name,running,mem_alarm,")
    api.answer = [{**running, "disk_free": "disk_free_monitoring_disabled"}]
    assert nodes(HERE, 10.0) == []


@pytest.mark.parametrize(
    ("status", "answer"), [(401, {"error": "not_authorized"}), (200, "hello"), (200, [1])]
)
def test_nobody_tells(api: Api, status: int, answer: object) -> None:
    api.status, api.answer = status, answer
    assert copies(HERE, 10.0) == {}
    assert nodes(HERE, 10.0) == []


def test_the_next_host_is_asked(api: Api) -> None:
    api.answer = [{"name": "train", "members": ["a"], "online": ["a"]}]
    away = Address("amqp", "127.0.0.2", others=(("127.0.0.1", None),))
    assert copies(away, 10.0) == {"train": (1, 1)}
