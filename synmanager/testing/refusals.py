"""What cannot work, told apart: refused, unavailable, misconfigured; and no secret is told."""

from __future__ import annotations

import logging
import time
import traceback
from uuid import uuid4

import pytest

from synmanager.backends.base import QueueBackend, QueueSpec
from synmanager.errors import AccessRefused, BrokerUnavailable, ConfigurationError
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.steps import WAIT, publish, take
from synmanager.testing.topic import Topic

__all__ = ["Refusals"]


def told(error: BaseException | None) -> str:
    """All that an error says, and those that it came from."""
    texts = []
    while error is not None:
        texts += [str(error), repr(error), repr(error.args), repr(vars(error))]
        texts += traceback.format_exception(error)
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


class Refusals(Topic):
    @pytest.fixture
    def secret(self) -> str:
        return f"secret{uuid4().hex}"

    def assert_unsaid(
        self,
        secret: str,
        client: QueueBackend,
        error: BaseException | None,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        assert secret not in told(error), "the error tells the password"
        assert secret not in f"{client!r} {client} {client.address!r}"
        said = "\n".join(record.getMessage() for record in caplog.records)
        assert secret not in said + caplog.text, "the log tells the password"

    def test_who_is_refused_is_told_so_and_no_password(
        self, broker: BrokerUnderTest, secret: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        fields = broker.refused(secret)
        caplog.set_level(logging.DEBUG)
        client = broker.make(**fields)
        for _ in range(2):  # the first refusal leaves nothing behind
            with pytest.raises(AccessRefused) as error:
                client.open()
            assert not client.is_open
            self.assert_unsaid(secret, client, error.value, caplog)
        with pytest.raises(BrokerUnavailable):
            client.count("anything")
        client.close()
        self.assert_unsaid(secret, client, None, caplog)

    def test_where_nobody_answers_is_unavailable_and_not_refused(
        self, broker: BrokerUnderTest, secret: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        fields = broker.dead(secret)
        caplog.set_level(logging.DEBUG)
        client = broker.make(timeout=broker.timeout, **fields)
        begin = time.monotonic()
        for _ in range(2):
            with pytest.raises(BrokerUnavailable) as error:
                client.open()
            assert not client.is_open
            self.assert_unsaid(secret, client, error.value, caplog)
        assert time.monotonic() - begin < 2 * broker.timeout + WAIT
        client.close()

    def test_an_option_that_nobody_knows_is_refused_before_any_io(
        self, broker: BrokerUnderTest
    ) -> None:
        sound = broker.make().address.options
        for options in broker.bad_options():
            with pytest.raises(ConfigurationError) as error:
                broker.make(options={**sound, **options})
            named = [name for name in options if name in str(error.value)]
            assert named, f"{error.value} names none of {sorted(options)}"

    def test_a_password_that_works_is_not_told_either(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        spec: QueueSpec,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        other = broker.connect()
        publish(other, spec)
        delivery = take(other, spec)
        secret = client.address.password
        for thing in (other, other.address, delivery, delivery.receipt):
            assert secret is None or len(secret) < 8 or secret not in repr(thing)
        other.ack(delivery)
        if secret is not None and len(secret) >= 8:  # "guest" is also a word
            assert secret not in caplog.text
