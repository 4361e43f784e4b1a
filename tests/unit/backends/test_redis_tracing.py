"""A job's spans by way of Redis, as far as fakeredis can tell."""

from __future__ import annotations

from functools import partial

import pytest
from fake_redis import FakeConnection, new_server
from seen import Seen, about, ids, links

from synmanager import Retry, Worker, base
from synmanager.backends import Address
from synmanager.backends.redis import RedisBackend
from synmanager.engine import service
from synmanager.train import TrainProducerOperator


def test_attempts_are_linked_to_their_submission(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = partial(FakeConnection, server=new_server())

    def create(address: Address) -> RedisBackend:
        return RedisBackend(address, connection)

    for module in (base, service):
        monkeypatch.setattr(module, "create_backend", create)
    seen = Seen(monkeypatch)

    def train(run: int) -> dict[str, int]:
        if not seen.spans("process train"):
            raise Retry("later", delay=0)
        return {"run": run}

    with TrainProducerOperator(url="redis://fake") as producer:
        producer.submit({"run": 1})
    Worker({"train": train}, url="redis://fake").run(burst=True)
    seen.close()
    send, (first, second) = seen.one("send train"), seen.spans("process train")
    assert links(first) == links(second) == [ids(send)]
    assert [about(span)["synmanager.attempt"] for span in (first, second)] == [1, 2]
    assert about(send)["messaging.system"] == "redis"
    assert about(send)["server.address"] == "fake"
    result = seen.one("send completed").parent
    assert result is not None
    assert result.span_id == ids(second)[1]
