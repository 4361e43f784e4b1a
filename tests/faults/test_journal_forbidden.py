"""A user who may not use the journal works all the same, on the connection that he has."""

from __future__ import annotations

import pytest
from harness.rabbitmq import RabbitMQ

from synmanager.backends.rabbitmq import RabbitMQBackend
from synmanager.errors import AccessRefused
from synmanager.settings import parse_url
from synmanager.testing.steps import make_spec, publish, take


@pytest.mark.only("rabbitmq")
def test_queues_work_on_where_the_journal_is_forbidden(broker: RabbitMQ) -> None:
    url = broker.url_of_a_stranger()
    broker.forbid("stranger", r"synmanager\\.journal\\.")
    client, owner = (RabbitMQBackend(parse_url(each)) for each in (url, broker.url()))
    try:
        client.open()
        owner.open()
        spec = make_spec()
        client.declare(spec)
        publish(client, spec)
        held = take(client, spec)
        for is_there in (False, True):
            if is_there:
                owner.record("events", [b"1"])
            else:
                with pytest.raises(AccessRefused, match="events"):
                    client.record("events", [b"1"])
            for wait in (0, 1.0):
                with pytest.raises(AccessRefused, match="events"):
                    client.replay("events", wait=wait)
        assert client.is_open
        client.ack(held)
        publish(client, spec)
        client.ack(take(client, spec))
    finally:
        client.close()
        owner.close()
