"""PostgreSQL through kombu's pgmq: the lease is the visibility timeout, renewed and fenced.

Queues and messages are as kombu's transport makes them, and its other programs share them; the
statements are ours. kombu settles a delivery by the number of its message alone, and so that of
whoever has it by then; the names of its queues fold into each other (``a.dead``, ``a_dead``); and
it waits for an answer without end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from synmanager.backends.base import Address
from synmanager.backends.kombu.address import patience, pgmq_conninfo
from synmanager.backends.kombu.carrier import Taken
from synmanager.backends.kombu.parcels import Parcel, no_parcel
from synmanager.backends.kombu.queues import DEAD
from synmanager.backends.kombu.virtual import Row, Virtual
from synmanager.errors import ConfigurationError, InvalidJob, LeaseLost, TopologyError

if TYPE_CHECKING:
    from synmanager.backends.kombu.postgres import Wire

__all__ = ["Pgmq", "pgmq_name"]

#: Characters of a name that pgmq accepts.
_LONGEST_NAME = 47
_WORD = "[a-z0-9]+(_[a-z0-9]+)*"
_FITTING = re.compile(rf"{_WORD}(\.{_WORD})*")

#: Nobody has it: it is time, or it was never taken, and is held back until it is.
_WAITS = "vt <= clock_timestamp() OR read_ct = 0"

#: Still ours: whoever takes it next counts ``read_ct`` up.
_OURS = "msg_id = %s AND read_ct = %s AND vt > clock_timestamp()"

#: Bindings and types of exchanges, for every client. Made only where it is not: that is a right
#: which not everybody has.
_ROWS = "pgmq.synmanager_rows"
_MAKE_ROWS = f"""
DO $$ BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('{_ROWS}'));
    CREATE TABLE IF NOT EXISTS {_ROWS} (
        name text NOT NULL, key text NOT NULL, pattern text NOT NULL, queue text NOT NULL,
        PRIMARY KEY (name, key, pattern, queue)
    );
END $$
"""

_NO_TABLE = "42P01"

#: Classes of what PostgreSQL cannot store.
_UNFIT = ("22", "54")


def pgmq_name(queue: str) -> str:
    """pgmq's name for a queue: its own if that fits, with ``__`` for each dot.

    Otherwise what can be read of it and its hash, with ``___`` in between, which no fitting name
    has.
    """
    name = queue.replace(".", "__")
    if _FITTING.fullmatch(queue) and len(name) <= _LONGEST_NAME:
        return name
    digest = sha256(queue.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    words = "_".join(re.findall("[a-z0-9]+", queue.lower()))
    return f"{words[: _LONGEST_NAME - len(digest) - 3]}___{digest}"


def _table(queue: str) -> str:
    return f"pgmq.q_{pgmq_name(queue)}"


class Pgmq(Virtual):
    """A database, by one connection."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._wire: Wire | None = None

    # Life cycle

    def open(self) -> None:
        from synmanager.backends.kombu.postgres import Wire

        limit = patience(self.address)
        self._wire = Wire(pgmq_conninfo(self.address), limit)
        # No job is accepted before it is on the disk, whatever this server's habit.
        self._ask(
            "SELECT set_config('synchronous_commit', 'on', false) "
            "WHERE current_setting('synchronous_commit') = 'off'"
        )
        self._ask("SELECT set_config('client_min_messages', 'error', false)")
        milliseconds = str(max(1, int(1000 * limit)))
        self._ask("SELECT set_config('statement_timeout', %s, false)", milliseconds)
        if not self._has_pgmq():
            self._install()
        # What we use of it, how it writes a message and how it reads one, does not connect.
        self._link = self._transport
        self._channel = self._transport.create_channel(self._link)

    def _has_pgmq(self) -> bool:
        name = "pgmq.send(text, jsonb, jsonb, timestamptz)"
        return bool(self._ask("SELECT 1 WHERE to_regprocedure(%s) IS NOT NULL", name))

    def _install(self) -> None:
        try:
            self._ask("CREATE EXTENSION IF NOT EXISTS pgmq")
        except Exception as error:
            if not self._has_pgmq():  # nobody else has done it in the meantime
                raise ConfigurationError(
                    "the database has no pgmq, or an old one, and does not let us install it (the "
                    f"package pgmq has install_pgmq_from_sql for that): {error}"
                ) from None

    def sever(self) -> None:
        if self._wire is not None:
            self._wire.close()

    def _ask(self, question: str, *values: Any) -> list[tuple[Any, ...]]:
        assert self._wire is not None
        try:
            return self._wire.ask(question, *values)
        except Exception as error:
            code = getattr(error, "sqlstate", None) or ""
            if code == _NO_TABLE:
                raise TopologyError(f"a queue does not exist; declare it first: {error}") from error
            if code.startswith(_UNFIT):
                raise InvalidJob(f"PostgreSQL cannot store the message: {error}") from error
            raise

    # Topology

    def rows(self, table: str) -> set[Row]:
        try:
            found = self._ask(f"SELECT key, pattern, queue FROM {_ROWS} WHERE name = %s", table)
        except TopologyError:
            return set()
        return {(key, pattern, queue) for key, pattern, queue in found}

    def add_row(self, table: str, row: Row) -> None:
        if not self._ask("SELECT 1 WHERE to_regclass(%s) IS NOT NULL", _ROWS):
            self._ask(_MAKE_ROWS)
        self._ask(
            f"INSERT INTO {_ROWS} VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING", table, *row
        )

    def make_queue(self, queue: str) -> None:
        if not self._exist(queue):
            self._ask("SELECT pgmq.create(%s)", pgmq_name(queue))

    def list_queue(self, queue: str) -> None:
        return None  # pgmq knows its queues

    def has(self, queue: str) -> bool:
        # The dead letters' comes last; a foreign program makes only the first.
        return self._exist(queue, queue + DEAD)

    def _exist(self, *queues: str) -> bool:
        names = [pgmq_name(queue) for queue in queues]
        found = self._ask("SELECT 1 FROM pgmq.meta WHERE queue_name = ANY(%s)", names)
        return len(found) == len(names)

    # Sending

    def held_back(self, seconds: float) -> dict[str, Any]:
        return {"DelaySeconds": seconds} if seconds > 0 else {}

    def deliver(self, message: dict[str, Any], queue: str) -> None:
        hold = float(message["properties"].pop("DelaySeconds", 0.0))
        self._channel._inplace_augment_message(message, "", queue)
        headers = self._channel._pgmq_send_kwargs(message).get("headers")
        self._ask(
            "SELECT pgmq.send(%s, %s::jsonb, %s::jsonb, "
            "clock_timestamp() + make_interval(secs => %s))",
            pgmq_name(queue), json.dumps(message), json.dumps(headers), hold,
        )  # fmt: skip

    # Receiving

    def filled(self, queues: list[str]) -> Collection[str]:
        question = " UNION ALL ".join(
            f"SELECT {number} WHERE EXISTS "
            f"(SELECT 1 FROM {_table(queue)} WHERE vt <= clock_timestamp())"
            for number, queue in enumerate(queues)
        )
        return {queues[number] for (number,) in self._ask(question)}

    def take(self, queue: str, lease: float) -> Taken | None:
        table = _table(queue)
        found = self._ask(
            f"WITH head AS (SELECT msg_id FROM {table} WHERE vt <= clock_timestamp() "
            "ORDER BY msg_id LIMIT 1 FOR UPDATE SKIP LOCKED) "
            f"UPDATE {table} AS m SET read_ct = read_ct + 1, last_read_at = clock_timestamp(), "
            "vt = clock_timestamp() + make_interval(secs => %s) "
            "FROM head WHERE m.msg_id = head.msg_id RETURNING m.msg_id, m.read_ct, m.message",
            float(lease),
        )
        if not found:
            return None
        ((number, count, payload),) = found
        return Taken(queue, self._parcel(payload), count - 1, True, (number, count))

    def drop(self, taken: Taken) -> None:
        self._settle(f"DELETE FROM {_table(taken.queue)}", taken)

    def give_back(self, taken: Taken) -> None:
        self._keep(taken, 0.0)

    def renew(self, taken: Taken, lease: float) -> None:
        self._keep(taken, lease)

    def _keep(self, taken: Taken, seconds: float) -> None:
        then = "clock_timestamp() + make_interval(secs => %s)"
        self._settle(f"UPDATE {_table(taken.queue)} SET vt = {then}", taken, float(seconds))

    def _settle(self, what: str, taken: Taken, *values: Any) -> None:
        if not self._ask(f"{what} WHERE {_OURS} RETURNING 1", *values, *taken.handle):
            raise LeaseLost("the lease of this delivery ran out, or it is settled already")

    # Looking

    def size(self, queue: str) -> int:
        ((number,),) = self._ask(f"SELECT count(*) FROM {_table(queue)} WHERE {_WAITS}")
        return int(number)

    def purge(self, queue: str) -> int:
        gone = f"DELETE FROM {_table(queue)} WHERE {_WAITS} RETURNING 1"
        ((number,),) = self._ask(f"WITH gone AS ({gone}) SELECT count(*) FROM gone")
        return int(number)

    def peek(self, queue: str, limit: int) -> list[Parcel]:
        found = self._ask(
            f"SELECT message FROM {_table(queue)} WHERE {_WAITS} ORDER BY msg_id LIMIT %s", limit
        )
        return [self._parcel(payload) for (payload,) in found]

    def _parcel(self, payload: Any) -> Parcel:
        try:
            return self._unpack(payload)
        except Exception as error:  # whatever a stranger has put there
            return no_parcel(json.dumps(payload).encode(), error)
