"""The message exchange between a test and the next: the four phases' queues, as somebody made them.

0.1.0's components know their queues by name, so these tests share them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import released
from roles import consumer_class

__all__ = ["MAKERS", "fresh_queues"]

#: Who made the queues: an exchange of 0.1.0 that is upgraded later, or this project.
MAKERS = ("0.1.0", "this project")


@contextmanager
def fresh_queues(url: str, maker: str) -> Iterator[Any]:
    """Give a channel of plain pika on a broker whose four queues are new.

    They are gone afterwards: every component of this project declares what it needs.
    """
    channel = released.open_channel(url)
    _delete(channel)
    if maker == "0.1.0":
        released.define(channel)
    else:
        for phase in released.QUEUES:
            with consumer_class(phase)(url=url):
                pass
    try:
        yield channel
    finally:
        _delete(channel)
        channel.connection.close()


def _delete(channel: Any) -> None:
    for phase in released.QUEUES:
        channel.queue_delete(phase)
        channel.queue_delete(f"{phase}.dead")
