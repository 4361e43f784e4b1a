"""kombu's virtual transports, for which kombu itself is half of the broker.

Exchanges are ours: kombu drops a message without a route, keeps most bindings in one process, and
sends what goes to a fanout on Redis to whoever listens at that moment. A *table* holds the rows
``(key, pattern, queue)`` of a name; kombu's own table of an exchange is one, so that kombu's other
programs find our queues by it where kombu keeps it for all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

from kombu.utils.json import dumps, loads

from synmanager.backends.base import Address, ExchangeSpec, QueueSpec
from synmanager.backends.kombu.address import connection
from synmanager.backends.kombu.carrier import Carrier, Taken
from synmanager.backends.kombu.parcels import Parcel, read, write
from synmanager.backends.kombu.queues import DEAD
from synmanager.errors import TopologyError, Unroutable

__all__ = ["TYPE", "Filesystem", "Memory", "Row", "Sql", "Tables", "Virtual"]

Row = tuple[str, str, str]

#: The table of all queues. Not every transport can tell an empty one from none.
_QUEUES = "synmanager.queues"

#: The pattern of the row that says which type an exchange has; it has no queue.
TYPE = "synmanager-type-"


class Virtual(Carrier):
    """A transport of which nothing is known but what all of them can do."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._transport = connection(address).transport
        self._link: Any = None
        self._channel: Any = None

    def open(self) -> None:
        self._link = self._transport.establish_connection()
        self._channel = self._transport.create_channel(self._link)
        # kombu would print that it gives back what we hold, and do so in a child as well.
        self._channel.do_restore = False

    def close(self) -> None:
        self._transport.close_connection(self._link)

    def sever(self) -> None:
        return None

    # Tables

    def rows(self, table: str) -> set[Row]:
        known = self._channel.state.exchanges.get(table, {"table": []})
        return {tuple(row) for row in known["table"]}

    def add_row(self, table: str, row: Row) -> None:
        known = self._channel.state.exchanges.setdefault(
            table,
            {"type": "direct", "durable": True, "auto_delete": False, "arguments": {}, "table": []},
        )
        if row not in known["table"]:
            known["table"].append(row)

    # Topology

    def declare_exchange(self, spec: ExchangeSpec) -> None:
        kinds = {row[1].removeprefix(TYPE) for row in self.rows(spec.name) if not row[2]}
        if kinds - {spec.type}:
            raise TopologyError(
                f"exchange {spec.name!r} is of type {kinds.pop()!r}, not {spec.type!r}"
            )
        if not kinds:
            self.add_row(spec.name, ("", TYPE + spec.type, ""))

    def declare_queue(self, spec: QueueSpec, suffixes: list[str]) -> None:
        for suffix in [*suffixes, DEAD]:
            self.make_queue(spec.name + suffix)
        key = "" if spec.exchange.type == "fanout" else spec.routing_key
        self.list_queue(spec.name)
        self.add_row(spec.exchange.name, (key, "", spec.name))

    def make_queue(self, queue: str) -> None:
        """Make sure that it is there."""
        self._channel.queue_declare(queue)

    def list_queue(self, queue: str) -> None:
        """Note that a queue is there."""
        self.add_row(_QUEUES, ("", "", queue))

    def has(self, queue: str) -> bool:
        return ("", "", queue) in self.rows(_QUEUES)

    def _route(self, exchange: str, key: str) -> list[str]:
        rows = self.rows(exchange)
        if ("", f"{TYPE}fanout", "") in rows:
            key = ""
        found = sorted(queue for bound, _, queue in rows if queue and bound == key)
        if not found:
            raise Unroutable(f"no queue is bound to exchange {exchange!r} with routing key {key!r}")
        return found

    # Sending

    def publish(
        self, exchange: str, key: str, suffix: str, parcels: list[Parcel], hold: float
    ) -> Iterator[None]:
        queues = self._route(exchange, key)
        for parcel in parcels:
            for queue in queues:
                self.put(queue + suffix, parcel, hold)
            yield

    def put(self, queue: str, parcel: Parcel, hold: float = 0.0) -> None:
        headers, properties = write(parcel)
        message = self._channel.prepare_message(
            parcel.message.body,
            content_type="application/json",
            content_encoding="utf-8",
            headers=headers,
            properties={**properties, **self.held_back(hold)},
        )
        self.deliver(message, queue)

    def deliver(self, message: dict[str, Any], queue: str) -> None:
        """Have kombu put what it has prepared in a queue."""
        self._channel.basic_publish(message, "", queue)

    def held_back(self, seconds: float) -> dict[str, Any]:
        """The properties that make the broker hold a message back."""
        return {}

    # Receiving

    def take(self, queue: str, lease: float) -> Taken | None:
        message = self._channel.basic_get(queue)
        if message is None:
            return None
        flagged = message._raw.get("redelivered") or message.headers.get("redelivered")
        parcel = read(message.body, message.headers, message.properties)
        return Taken(queue, parcel, int(bool(flagged)), False, message.delivery_tag)

    def drop(self, taken: Taken) -> None:
        self._channel.basic_ack(taken.handle)

    def give_back(self, taken: Taken) -> None:
        self._channel.basic_reject(taken.handle, requeue=True)

    # Looking

    def size(self, queue: str) -> int:
        return int(self._channel._size(queue))

    def purge(self, queue: str) -> int:
        return int(self._channel.queue_purge(queue) or 0)

    def peek(self, queue: str, limit: int) -> list[Parcel]:
        return [self._unpack(payload) for payload in self.payloads(queue, limit)]

    def payloads(self, queue: str, limit: int) -> list[dict[str, Any]]:
        """The oldest messages of a queue as kombu stores them."""
        raise NotImplementedError

    def _unpack(self, payload: dict[str, Any]) -> Parcel:
        message = self._channel.Message(payload, channel=self._channel)
        return read(message.body, message.headers, message.properties)


class Memory(Virtual):
    """In this process."""

    def payloads(self, queue: str, limit: int) -> list[dict[str, Any]]:
        return list(self._channel._queue_for(queue).queue)[:limit]


class Tables(Virtual):
    """One whose tables kombu keeps for every process."""

    def rows(self, table: str) -> set[Row]:
        return {tuple(row) for row in self._channel.get_table(table)}

    def add_row(self, table: str, row: Row) -> None:
        self._channel._queue_bind(table, *row)


class Filesystem(Tables):
    """A folder."""

    def open(self) -> None:
        options = self._transport.client.transport_options
        for name in ("data_folder_in", "processed_folder", "control_folder"):
            os.makedirs(options[name], exist_ok=True)
        super().open()

    def deliver(self, message: dict[str, Any], queue: str) -> None:
        # kombu writes in place, and who looks in that moment takes half a message, and loses it.
        channel = self._channel
        channel._inplace_augment_message(message, "", queue)
        folder = channel.data_folder_out
        written = round(time.monotonic() * 1000)
        name = f"{written}_{uuid4()}.{queue}.msg"
        with open(os.path.join(folder, f".{name}.new"), "w") as file:
            file.write(dumps(message))
        os.replace(file.name, os.path.join(folder, name))
        # Files are taken in the order of their names.
        while round(time.monotonic() * 1000) <= written:
            time.sleep(0.0002)

    def payloads(self, queue: str, limit: int) -> list[dict[str, Any]]:
        folder = self._channel.data_folder_in
        found: list[dict[str, Any]] = []
        for name in sorted(os.listdir(folder)):
            if name.partition(".")[2] == f"{queue}.msg" and len(found) < limit:
                with suppress(FileNotFoundError), open(os.path.join(folder, name)) as file:
                    found.append(loads(file.read()))
        return found


class Sql(Virtual):
    """Tables of a database. A row of ours is a queue that stays empty, named for what it says."""

    def close(self) -> None:
        if self._channel is not None:
            # Else its connection is missing from the pool until the session is collected.
            self._channel.session.close()
        super().close()

    def rows(self, table: str) -> set[Row]:
        session, queue = self._channel.session, self._channel.queue_cls
        prefix = f"{table}\n"
        found = session.query(queue.name).filter(queue.name.startswith(prefix, autoescape=True))
        rows = {tuple(name.removeprefix(prefix).split("\n")) for (name,) in found}
        session.commit()
        return {row for row in rows if len(row) == 3}

    def add_row(self, table: str, row: Row) -> None:
        self._channel._new_queue("\n".join((table, *row)))

    def payloads(self, queue: str, limit: int) -> list[dict[str, Any]]:
        channel = self._channel
        rows = (
            channel._query_all(queue)
            .filter(channel.message_cls.visible.is_(True))
            .order_by(channel.message_cls.sent_at, channel.message_cls.id)
            .limit(limit)
        )
        found = [loads(row.payload) for row in rows]
        channel.session.commit()
        return found
