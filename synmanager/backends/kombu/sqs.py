"""Amazon SQS through kombu: the lease is the visibility timeout, renewed by the receipt handle.

kombu keeps bindings in one process and answers a failed acknowledgement with silence, so that both
are done here, through kombu's own client. The bindings of an exchange are tags of a queue of its
name, which stays empty.
"""

from __future__ import annotations

import math
from typing import Any
from zlib import crc32

from synmanager.backends.kombu.carrier import Taken
from synmanager.backends.kombu.parcels import Parcel, read
from synmanager.backends.kombu.virtual import TYPE, Row, Virtual
from synmanager.errors import InvalidJob, LeaseLost

__all__ = ["Sqs"]

_TAGS = ".exchange"
_TYPE_TAG = "synmanager-type"
_QUEUE_TAG = "synmanager-queue"

#: What the service says about a receipt handle that it does not take any more.
_STALE = ("ReceiptHandleIsInvalid", "InvalidParameterValue", "MessageNotInflight")


class Sqs(Virtual):
    """The service, or what speaks like it."""

    # Tables

    def rows(self, table: str) -> set[Row]:
        if not self.has(table + _TAGS):
            return set()
        answer = self._client.list_queue_tags(QueueUrl=self._url(table + _TAGS))
        found: set[Row] = set()
        for tag, value in answer.get("Tags", {}).items():
            kind, _, rest = tag.partition(":")
            if kind == _TYPE_TAG:
                found.add(("", TYPE + value, ""))
            elif kind == _QUEUE_TAG:
                # Tags have no empty values.
                found.add((value.removeprefix("key="), "", rest.rpartition(":")[0]))
        return found

    def add_row(self, table: str, row: Row) -> None:
        key, pattern, queue = row
        if queue:
            tag = {f"{_QUEUE_TAG}:{queue}:{crc32(key.encode()):x}": f"key={key}"}
        else:
            tag = {_TYPE_TAG: pattern.removeprefix(TYPE)}
        self._channel.queue_declare(table + _TAGS)
        self._client.tag_queue(QueueUrl=self._url(table + _TAGS), Tags=tag)

    def has(self, queue: str) -> bool:
        name = self._channel.canonical_queue_name(queue)
        cache = self._channel._queue_cache
        if name not in cache:
            self._channel._update_queue_cache(name)
        return name in cache

    def list_queue(self, queue: str) -> None:
        return None  # the service knows its queues

    # Sending

    def put(self, queue: str, parcel: Parcel, hold: float = 0.0) -> None:
        try:
            super().put(queue, parcel, hold)
        except Exception as error:
            if "must be shorter than" in str(error):
                raise InvalidJob(f"SQS can never take the message: {error}") from error
            raise

    def held_back(self, seconds: float) -> dict[str, Any]:
        return {"DelaySeconds": math.ceil(seconds)} if seconds > 0 else {}

    # Receiving

    def take(self, queue: str, lease: float) -> Taken | None:
        from queue import Empty

        try:
            payload = self._channel._get(queue)
        except Empty:
            return None
        message = self._channel.Message(payload, channel=self._channel)
        found = message.delivery_info["sqs_message"]
        parcel = read(message.body, message.headers, message.properties)
        failures = int(found["Attributes"]["ApproximateReceiveCount"]) - 1
        taken = Taken(queue, parcel, failures, True, (queue, found["ReceiptHandle"]))
        self.renew(taken, lease)
        return taken

    def drop(self, taken: Taken) -> None:
        queue, handle = taken.handle
        self._ask("delete_message", queue, ReceiptHandle=handle)

    def give_back(self, taken: Taken) -> None:
        self._keep(taken, 0)

    def renew(self, taken: Taken, lease: float) -> None:
        self._keep(taken, math.ceil(lease))

    def _keep(self, taken: Taken, seconds: int) -> None:
        queue, handle = taken.handle
        self._ask(
            "change_message_visibility", queue, ReceiptHandle=handle, VisibilityTimeout=seconds
        )

    def _ask(self, method: str, queue: str, **kwargs: Any) -> None:
        try:
            getattr(self._client, method)(QueueUrl=self._url(queue), **kwargs)
        except Exception as error:
            answer = getattr(error, "response", None)
            if isinstance(answer, dict) and answer.get("Error", {}).get("Code") in _STALE:
                raise LeaseLost(f"the delivery was taken back: {error}") from error
            raise

    # Looking

    def purge(self, queue: str) -> int:
        # The service's own takes away what is held as well, and works once in a minute.
        removed = 0
        while (taken := self.take(queue, 30)) is not None:
            self.drop(taken)
            removed += 1
        return removed

    @property
    def _client(self) -> Any:
        return self._channel.sqs()

    def _url(self, queue: str) -> str:
        return str(self._channel._resolve_queue_url(queue))
