"""Redis through kombu: taken and noted as held in one script, with a lease that can be renewed.

kombu takes a message with one command and notes it as unacknowledged with the next: what dies in
between takes the message with it. It hands out again what was noted longer ago than
``visibility_timeout``, and with the same tag, so that the old holder's acknowledgement would settle
the new one's job. Here each delivery has a tag of its own, and is noted at such a time that its own
lease is over when kombu's would be, whoever looks.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from kombu.utils.json import dumps, loads

from synmanager.backends.kombu.carrier import Taken
from synmanager.backends.kombu.parcels import no_parcel, read
from synmanager.backends.kombu.virtual import Tables
from synmanager.errors import LeaseLost

__all__ = ["Redis"]

_NOW = "local t = redis.call('TIME') local now = tonumber(t[1]) + tonumber(t[2]) / 1000000 "

#: KEYS: unacked, its index, the lists of a queue. ARGV: tag, seconds to add to now, the queue as
#: JSON. A command that is repeated finds what it took before.
_TAKE = (
    _NOW
    + """
local note = redis.call('HGET', KEYS[1], ARGV[1])
if note then return string.sub(note, 2, -#(', "", ' .. ARGV[3] .. ']') - 1) end
for i = 3, #KEYS do
    local raw = redis.call('RPOP', KEYS[i])
    if raw then
        redis.call('ZADD', KEYS[2], string.format('%.6f', now + ARGV[2]), ARGV[1])
        redis.call('HSET', KEYS[1], ARGV[1], '[' .. raw .. ', "", ' .. ARGV[3] .. ']')
        return raw
    end
end
return false
"""
)

#: KEYS: lists.
_FILLED = """
local found = {}
for i, list in ipairs(KEYS) do found[i] = redis.call('LLEN', list) end
return found
"""

#: KEYS: unacked, its index. ARGV: tag.
_DROP = "redis.call('HDEL', KEYS[1], ARGV[1]) return redis.call('ZREM', KEYS[2], ARGV[1])"

#: KEYS: the index. ARGV: tag, seconds to add to now.
_RENEW = (
    _NOW
    + """
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], string.format('%.6f', now + ARGV[2]), ARGV[1])
return 1
"""
)

#: KEYS: the index. ARGV: seconds to add to now, how many.
_EXPIRED = (
    _NOW
    + """
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now + ARGV[1], 'LIMIT', 0, ARGV[2])
"""
)

#: KEYS: unacked, its index, a list. ARGV: tag, the queue as JSON. What came goes back as it came.
_PUT_BACK = """
local note = redis.call('HGET', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
if not note then return end
redis.call('RPUSH', KEYS[3], string.sub(note, 2, -#(', "", ' .. ARGV[2] .. ']') - 1))
redis.call('HDEL', KEYS[1], ARGV[1])
"""

#: Freed in one look.
_PAGE = 100


class Redis(Tables):
    """A server of Redis or Valkey."""

    def open(self) -> None:
        super().open()
        # redis-py repeats a command whose answer was lost, a push too.
        retry = self._channel.client.get_retry()
        if retry is not None:
            retry.update_retries(0)

    def sever(self) -> None:
        channel = self._channel
        if channel is not None:
            with suppress(Exception):
                channel._disconnect_pools()

    def filled(self, queues: list[str]) -> Collection[str]:
        names = [name for queue in queues for name in self._lists(queue)]
        found = self._run(_FILLED, names)
        each = len(self._channel.priority_steps)
        return {
            queue
            for number, queue in enumerate(queues)
            if any(found[number * each : (number + 1) * each])
        }

    def _lists(self, queue: str) -> list[str]:
        """One for each of kombu's own priorities; ours use the first."""
        channel = self._channel
        return [channel._q_for_pri(queue, step) for step in channel.priority_steps]

    def take(self, queue: str, lease: float) -> Taken | None:
        channel, tag = self._channel, f"{secrets.token_hex(16)}:{queue}"
        lists = self._lists(queue)
        raw = self._run(
            _TAKE, [channel.unacked_key, channel.unacked_index_key, *lists],
            tag, lease - channel.visibility_timeout, dumps(queue),
        )  # fmt: skip
        if raw is None:
            return None
        try:
            payload = loads(raw.decode())
            message = channel.Message(payload, channel=channel)
            headers = message.headers
            parcel = read(message.body, headers, message.properties)
            return Taken(queue, parcel, int(bool(headers.get("redelivered"))), False, tag)
        except Exception as error:  # whatever a stranger has put there
            return Taken(queue, no_parcel(raw, error), 0, True, tag)

    def drop(self, taken: Taken) -> None:
        channel = self._channel
        keys = [channel.unacked_key, channel.unacked_index_key]
        if not self._run(_DROP, keys, taken.handle):
            raise _lost()

    def give_back(self, taken: Taken) -> None:
        self._restore(taken.handle)

    def _restore(self, tag: str) -> None:
        channel = self._channel
        note = channel.client.hget(channel.unacked_key, tag)
        queue = tag.partition(":")[2]
        if note is not None and queue and not _is_kombus(note):  # it would be dropped
            keys = [channel.unacked_key, channel.unacked_index_key, queue]
            self._run(_PUT_BACK, keys, tag, dumps(queue))
        else:
            channel.qos.restore_by_tag(tag)

    def renew(self, taken: Taken, lease: float) -> None:
        channel = self._channel
        score = lease - channel.visibility_timeout
        if not self._run(_RENEW, [channel.unacked_index_key], taken.handle, score):
            raise _lost()

    def reclaim(self) -> None:
        channel = self._channel
        keys = [channel.unacked_index_key]
        for tag in self._run(_EXPIRED, keys, -channel.visibility_timeout, _PAGE):
            self._restore(tag.decode())

    def payloads(self, queue: str, limit: int) -> list[dict[str, Any]]:
        raws = self._channel.client.lrange(queue, -limit, -1)
        return [loads(raw.decode()) for raw in reversed(raws)]

    def _run(self, script: str, keys: list[str], *args: Any) -> Any:
        return self._channel.client.eval(script, len(keys), *keys, *args)


def _is_kombus(note: bytes) -> bool:
    try:
        payload = loads(note.decode())[0]
    except (ValueError, LookupError, TypeError):
        return False
    return isinstance(payload, dict)


def _lost() -> LeaseLost:
    return LeaseLost("the lease of this delivery ran out, or it is settled already")
