"""A queue for each rank: the names, and what a batch that is cut off in the middle says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from synmanager.backends import ExchangeSpec, QueueSpec
from synmanager.backends.rabbitmq.frames import Content
from synmanager.backends.rabbitmq.publishing import publish_apart
from synmanager.backends.rabbitmq.ranks import Ranks, sisters
from synmanager.errors import NotPublished, PublishInterrupted, PublishRefused, Unroutable
from synmanager.message import Message, Rank

LOW, NORMAL, HIGH = Rank.LOW, Rank.NORMAL, Rank.HIGH


def test_the_family_of_a_queue() -> None:
    ranks = Ranks()
    assert ranks.family("train") == ["train"]
    ranks.note("train", has_sisters=True)
    assert ranks.family("train") == ["train.high", "train", "train.low"]
    assert [ranks.name(queue) for queue in ranks.family("train")] == ["train"] * 3
    ranks.forget()
    assert ranks.family("train") == ["train"]
    assert ranks.name("train.high") == "train"  # a job of it may still be held


def test_sisters_have_exchanges_of_their_own() -> None:
    spec = QueueSpec("train", ExchangeSpec("logs", "topic"), "key")
    assert [(each.name, each.exchange.name, each.routing_key) for each in sisters(spec)] == [
        ("train.high", "logs.high", "key"),
        ("train.low", "logs.low", "key"),
    ]


@pytest.mark.parametrize("kind", [Unroutable, PublishRefused, PublishInterrupted])
def test_what_was_not_tried_is_not_accepted_either(kind: type[NotPublished]) -> None:
    messages = [Message(b"{}", rank=rank) for rank in (LOW, NORMAL, HIGH, NORMAL)]
    contents = [Content(bytes([number]), b"") for number in range(4)]
    put: list[tuple[Rank, list[int]]] = []

    def put_one(rank: Rank, some: Sequence[Content], those: Sequence[Message]) -> None:
        put.append((rank, [content.properties[0] for content in some]))
        if rank is NORMAL:
            raise kind("why", those[1:])

    with pytest.raises(kind, match="why") as error:
        publish_apart(contents, messages, put_one)
    assert put == [(HIGH, [2]), (NORMAL, [1, 3])]
    assert error.value.unconfirmed == (messages[3], messages[0])
