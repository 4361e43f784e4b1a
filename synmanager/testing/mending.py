"""Single dead letters, picked by their ids; delayed messages; what a broker tells of itself."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from synmanager.backends.base import DeadLetter, QueueBackend, QueueSpec
from synmanager.errors import TopologyError, Unsupported
from synmanager.message import Message, Rank
from synmanager.testing.steps import (
    HEADERS,
    assert_counts,
    bury,
    make_spec,
    publish,
    take,
)
from synmanager.testing.topic import Topic

__all__ = ["Mending"]


class Mending(Topic):
    def refuses_to_mend(self, client: QueueBackend, spec: QueueSpec) -> bool:
        """Whether a backend denies all this; asserts that then it refuses all of it."""
        if client.features.mends_letters:
            return False
        for call in (
            lambda: client.redrive_letters(spec.name, ["x"]),
            lambda: client.purge_letters(spec.name, ["x"]),
            lambda: client.edit_letter(spec.name, "x", b"{}"),
            lambda: client.add_letters(spec.name, []),
        ):
            with pytest.raises(Unsupported):
                call()
        return True

    def test_single_letters_are_put_back(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        if self.refuses_to_mend(client, spec):
            return
        sent = bury(client, spec, 5)
        assert client.redrive_letters(spec.name, [sent[3].id, sent[1].id, "of nobody"]) == 2
        left = [letter.message.id for letter in other.dead_letters(spec.name, 10)]
        assert left == [sent[0].id, sent[2].id, sent[4].id]
        for message in (sent[1], sent[3]):
            delivery = take(other, spec)
            assert (delivery.message.id, delivery.attempt) == (message.id, 1)
            assert delivery.message.body == message.body
            other.ack(delivery)
        assert_counts(client, spec, dead=3)
        assert client.redrive_letters(spec.name, []) == 0

    def test_single_letters_are_removed(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        if self.refuses_to_mend(client, spec):
            return
        sent = bury(client, spec, 3)
        assert client.purge_letters(spec.name, [sent[1].id, "of nobody"]) == 1
        left = [letter.message.id for letter in other.dead_letters(spec.name, 10)]
        assert left == [sent[0].id, sent[2].id]
        assert_counts(other, spec, dead=2)

    def test_a_letter_s_body_is_changed_and_nothing_else(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        if self.refuses_to_mend(client, spec):
            return
        sent = Message(b'{"run": "poison"}', rank=Rank.HIGH, headers=HEADERS)
        publish(client, spec, sent)
        client.nack(take(client, spec))
        client.bury(take(client, spec), "a reason", "a traceback")
        bury(client, spec, 2)
        before = {each.message.id: each for each in client.dead_letters(spec.name, 10)}
        assert client.edit_letter(spec.name, sent.id, b'{"run": 1}') is True
        assert client.edit_letter(spec.name, "of nobody", b"{}") is False
        after = {each.message.id: each for each in other.dead_letters(spec.name, 10)}
        edited = before[sent.id]
        before[sent.id] = replace(edited, message=replace(edited.message, body=b'{"run": 1}'))
        assert after == before
        assert client.redrive_letters(spec.name, [sent.id]) == 1
        delivery = take(client, spec)
        assert delivery.defect is None
        assert delivery.message == replace(
            sent, body=b'{"run": 1}', submitted_at=delivery.message.submitted_at
        )
        assert delivery.attempt == 1

    def test_of_two_letters_of_one_id_the_older_is_changed(
        self, client: QueueBackend, spec: QueueSpec
    ) -> None:
        if self.refuses_to_mend(client, spec):
            return
        for reason in ("older", "younger"):
            publish(client, spec, Message(b"{}", id="twice"))
            client.bury(take(client, spec), reason)
        assert client.edit_letter(spec.name, "twice", b"[]")
        found = {each.reason: each.message.body for each in client.dead_letters(spec.name, 10)}
        assert found == {"older": b"[]", "younger": b"{}"}

    def test_letters_of_elsewhere_are_kept_as_they_are(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        if self.refuses_to_mend(client, spec):
            return
        (first,) = bury(client, spec, 1)
        died = time.time() - 3600.5
        added = [
            DeadLetter(
                Message(b"[1]", f"letter-{n}", rank, 1234567890.5, headers=HEADERS),
                "elsewhere",
                f"why {n}",
                4 + n,
                died,
                f"where {n}" * n,
            )
            for n, rank in enumerate(Rank)
        ]
        added.append(DeadLetter(Message(b"\xff", submitted_at=None, schema=0), "", "", 0, died))
        client.add_letters(spec.name, added)
        found = other.dead_letters(spec.name, 10)
        assert [each.message.id for each in found] == [first.id, *(a.message.id for a in added)]
        for letter, sent in zip(found[1:], added, strict=True):
            died_at = letter.died_at
            assert died_at == pytest.approx(died, abs=0.01)
            assert letter == replace(sent, queue=spec.name, died_at=died_at)
        assert other.redrive_letters(spec.name, ["letter-2"]) == 1
        delivery = take(client, spec)
        assert delivery.message == added[2].message
        assert delivery.attempt == 1

    def test_letters_need_a_queue(self, client: QueueBackend) -> None:
        spec = make_spec()
        if self.refuses_to_mend(client, spec):
            return
        letter = DeadLetter(Message(b"{}"), spec.name, "why", 1, 1.0)
        with pytest.raises(TopologyError):
            client.add_letters(spec.name, [letter])
        with pytest.raises(TopologyError):
            client.count(spec.name)

    def test_delayed_messages_are_shown(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        if not client.features.shows_delayed:
            with pytest.raises(Unsupported):
                client.delayed(spec.name, 10)
            return
        late, soon = Message(b"1", rank=Rank.HIGH), Message(b"2", headers=HEADERS)
        publish(client, spec, late, delay=7200)
        publish(client, spec, soon, delay=3600)
        publish(client, spec)
        shown = other.delayed(spec.name, 10)
        assert [each.message for each in shown] == [soon, late]
        assert [each.seconds for each in shown] == pytest.approx([3600, 7200], abs=60)
        assert [each.message.id for each in other.delayed(spec.name, 1)] == [soon.id]
        assert_counts(other, spec, ready=1, delayed=2)

    def test_facts_change_nothing(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(client, spec)
        missing = make_spec()
        facts = other.facts([spec.name, missing.name])
        assert facts.queues is None or spec.name in facts.queues
        assert missing.name not in {**facts.consumers, **facts.arguments}
        with pytest.raises(TopologyError):
            other.count(missing.name)
        assert_counts(other, spec, ready=1)
