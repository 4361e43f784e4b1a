"""Logs that are only appended to: record and replay."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import wraps
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest

from synmanager.backends.base import Entry, QueueBackend, QueueSpec
from synmanager.errors import BrokerUnavailable, ConfigurationError, Unsupported
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.steps import AT_ONCE, WAIT, assert_counts, in_thread, publish, take
from synmanager.testing.topic import Topic

__all__ = ["Journal"]

#: Bytes: the longest entry.
_LONGEST = 128 * 1024


def needs_journal(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test of a log; where ``Features`` denies the journal, it is refused."""

    @wraps(test)
    def run(self: object, **fixtures: Any) -> None:
        client: QueueBackend = fixtures["client"]
        if client.features.journal:
            test(self, **fixtures)
            return
        with pytest.raises(Unsupported):
            client.record("events", [b"an entry"])
        with pytest.raises(Unsupported):
            client.replay("events")

    return run


class Journal(Topic):
    @pytest.fixture
    def new_log(self, broker: BrokerUnderTest) -> Iterator[Callable[[], str]]:
        """Makes up the name of a log that nobody has written to."""
        made: list[str] = []

        def make() -> str:
            made.append("".join(chr(ord("a") + int(digit, 16)) for digit in uuid4().hex))
            return made[-1]

        yield make
        broker.close_clients()
        broker.discard_logs(*made)

    @pytest.fixture
    def log(self, new_log: Callable[[], str]) -> str:
        return new_log()

    @needs_journal
    def test_entries_come_back_in_order_and_as_they_were(
        self, client: QueueBackend, other: QueueBackend, log: str
    ) -> None:
        begin = time.time()
        client.record(log, [b"1", b"2"])
        client.record(log, [])
        other.record(log, [b"3"])
        entries = client.replay(log)
        assert _data(entries) == [b"1", b"2", b"3"]
        assert len({entry.position for entry in entries}) == 3
        times = [entry.recorded_at for entry in entries]
        # A broker in a container has a clock of its own, which may tell whole seconds only.
        assert times == sorted(times)
        assert begin - 2 < times[0] <= times[-1] < time.time() + 2
        assert other.replay(log) == entries

    @needs_journal
    def test_what_was_accepted_is_there_without_waiting(
        self, client: QueueBackend, other: QueueBackend, log: str
    ) -> None:
        follower: str | float = 0.0
        for number in range(30):
            writer, reader = (client, other) if number % 3 else (other, client)
            writer.record(log, [b"%d" % number])
            # Who follows sees the new one and nothing else; and who comes anew sees them all.
            (entry,) = reader.replay(log, follower)
            assert entry.data == b"%d" % number
            assert client.replay(log, entry.position) == []
            if number % 10 == 9:
                assert len(reader.replay(log)) == number + 1
            follower = entry.position

    @needs_journal
    def test_a_first_look_without_waiting_sees_all(
        self, broker: BrokerUnderTest, client: QueueBackend, log: str
    ) -> None:
        for size in (1, 30, 600):
            client.record(log, [b"x"] * size)
            anew = broker.connect()
            before = len(client.replay(log, limit=5000))
            assert len(anew.replay(log, limit=5000)) == before
            client.record(log, [b"y"])
            assert len(anew.replay(log, limit=5000)) == before + 1

    @needs_journal
    def test_a_position_holds_in_other_clients_and_after_a_reconnection(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, log: str
    ) -> None:
        client.record(log, [b"%d" % number for number in range(10)])
        entries = client.replay(log)
        for index in (0, 4, 8, 9):
            for reader in (other, client):
                assert reader.replay(log, entries[index].position) == entries[index + 1 :]
        broker.cut(client)
        _reopen(client, log)
        assert client.replay(log, entries[6].position) == entries[7:]
        client.record(log, [b"after"])
        assert _data(client.replay(log, entries[-1].position)) == [b"after"]

    @needs_journal
    def test_a_time_to_begin_at(self, client: QueueBackend, other: QueueBackend, log: str) -> None:
        client.record(log, [b"1", b"2", b"3"])
        entries = client.replay(log)
        for since in (0.0, time.time() - 3600, entries[0].recorded_at):
            assert other.replay(log, since) == entries
        assert entries[2] in other.replay(log, entries[2].recorded_at)
        assert other.replay(log, time.time() + 3600) == []

    @needs_journal
    def test_a_time_passes_over_what_is_older(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, log: str
    ) -> None:
        client.record(log, [b"old"] * 3)
        last = client.replay(log)[-1]
        time.sleep(0.01)  # a broker's clock ticks in milliseconds
        client.record(log, [b"new"])
        (new,) = client.replay(log, last.position)
        if new.recorded_at > last.recorded_at:
            assert other.replay(log, new.recorded_at)[-1] == new
            assert len(other.replay(log, new.recorded_at)) <= 4
        assert other.replay(log, new.recorded_at, limit=10)[-1] == new

    @needs_journal
    def test_a_limit(self, client: QueueBackend, log: str) -> None:
        client.record(log, [b"%d" % number for number in range(10)])
        read: list[Entry] = []
        after: str | float = 0.0
        while page := client.replay(log, after, limit=3):
            assert len(page) == (3 if len(read) < 9 else 1)
            read += page
            after = page[-1].position
        assert _data(read) == [b"%d" % number for number in range(10)]
        assert client.replay(log, limit=1) == read[:1]
        assert client.replay(log, read[0].position, limit=2) == read[1:3]
        assert client.replay(log, limit=100) == read

    @needs_journal
    def test_going_back_and_forth(self, client: QueueBackend, log: str) -> None:
        client.record(log, [b"%d" % number for number in range(20)])
        entries = client.replay(log)
        for index in (3, 15, 3, 4, 0, 19, 19, 10):
            found = client.replay(log, entries[index].position, limit=5)
            assert found == entries[index + 1 : index + 6]

    @needs_journal
    def test_an_entry_ends_a_wait_at_once(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, log: str
    ) -> None:
        client.record(log, [b"before"])
        (last,) = client.replay(log)
        for number in range(3):  # the second wait must work as the first
            waiting = in_thread(lambda last=last: client.replay(log, last.position, wait=WAIT))
            time.sleep(broker.quiet)  # no call tells that another one is waiting
            assert not waiting.done()
            other.record(log, [b"%d" % number])
            (last,) = waiting.result(AT_ONCE)
            assert last.data == b"%d" % number

    @needs_journal
    @pytest.mark.parametrize("wait", [0, 0.1])
    def test_a_wait_for_nothing_ends_in_time(
        self, client: QueueBackend, log: str, wait: float
    ) -> None:
        client.record(log, [b"1"])
        (last,) = client.replay(log)
        for _ in range(2):
            begin = time.monotonic()
            assert client.replay(log, last.position, wait=wait) == []
            assert time.monotonic() - begin < wait + AT_ONCE

    @needs_journal
    def test_what_is_there_is_not_waited_for(self, client: QueueBackend, log: str) -> None:
        client.record(log, [b"1", b"2"])
        begin = time.monotonic()
        (first, _) = client.replay(log, wait=WAIT)
        assert _data(client.replay(log, first.position, wait=WAIT)) == [b"2"]
        assert time.monotonic() - begin < WAIT / 2

    @needs_journal
    def test_a_log_that_is_not_there_is_empty(
        self, client: QueueBackend, other: QueueBackend, log: str
    ) -> None:
        assert client.replay(log) == []
        assert client.replay(log, time.time(), wait=0.1) == []
        waiting = in_thread(lambda: client.replay(log, wait=WAIT))
        other.record(log, [b"the first"])
        assert _data(waiting.result(WAIT)) == [b"the first"]

    @needs_journal
    def test_a_batch(self, client: QueueBackend, other: QueueBackend, log: str) -> None:
        sent = [b"%d" % number for number in range(1500)]
        client.record(log, sent)
        first = other.replay(log)
        assert _data(first) == sent[:1000]  # the limit unless another is given
        assert _data(other.replay(log, first[-1].position)) == sent[1000:]
        assert _data(client.replay(log, limit=2000)) == sent

    @needs_journal
    def test_entries_of_any_bytes_and_size(
        self, client: QueueBackend, other: QueueBackend, log: str
    ) -> None:
        every = bytes(range(256))
        sent = [every * (_LONGEST // 256), b"\xff\xfe", b"\0", b"{}", b"\r\n", b"", every]
        sent += [b"\0" * _LONGEST] * 20
        for entry in sent[:8]:
            client.record(log, [entry])
        client.record(log, sent[8:])
        assert _data(other.replay(log)) == sent
        read: list[Entry] = []
        while page := client.replay(log, read[-1].position if read else 0.0, limit=4):
            read += page
        assert _data(read) == sent

    @needs_journal
    def test_logs_are_apart(
        self, client: QueueBackend, other: QueueBackend, new_log: Callable[[], str]
    ) -> None:
        one, two = new_log(), new_log()
        client.record(one, [b"1", b"2"])
        client.record(two, [b"3"])
        client.record(one, [b"4"])
        assert _data(other.replay(one)) == [b"1", b"2", b"4"]
        (last,) = other.replay(two)
        waiting = in_thread(lambda: other.replay(two, last.position, wait=WAIT))
        client.record(one, [b"5"])
        client.record(two, [b"6"])
        assert _data(waiting.result(WAIT)) == [b"6"]

    @needs_journal
    def test_several_write_and_read_at_once(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, log: str
    ) -> None:
        """Two threads on each client; every reader sees all, once, in the same order."""
        start = Barrier(6)

        def write(writer: QueueBackend, name: bytes) -> None:
            start.wait(WAIT)
            for number in range(25):
                writer.record(log, [name + b"%d" % number, name + b"again"])

        def follow(reader: QueueBackend) -> list[Entry]:
            start.wait(WAIT)
            seen: list[Entry] = []
            while len(seen) < 150:
                page = reader.replay(log, seen[-1].position if seen else 0.0, wait=WAIT)
                assert page, f"nothing came after {len(seen)} entries"
                seen += page
            return seen

        client.record(log, [])
        writers = [
            in_thread(write, w, n) for w, n in ((client, b"a"), (client, b"b"), (other, b"c"))
        ]
        readers = [in_thread(follow, reader) for reader in (client, other, other)]
        for writer in writers:
            writer.result(3 * WAIT)
        seen = [reader.result(3 * WAIT) for reader in readers]
        assert seen[0] == seen[1] == seen[2]
        for name in (b"a", b"b", b"c"):
            own = [data for data in _data(seen[0]) if data.startswith(name)]
            assert own == [
                name + text for number in range(25) for text in (b"%d" % number, b"again")
            ]

    @needs_journal
    def test_the_oldest_go_when_a_log_is_full(
        self, broker: BrokerUnderTest, client: QueueBackend, log: str
    ) -> None:
        full = broker.connect(journal_bytes=1024 * 1024)
        full.record(log, [b"first"])
        (first,) = client.replay(log)
        begin = time.monotonic()
        written = 0
        # A broker may keep whole segments, and look at them now and then.
        while client.replay(log, limit=1) == [first] or written < 64:
            full.record(log, [b"%d " % (written + n) + b"x" * 100_000 for n in range(16)])
            written += 16
            assert written < 200 or time.monotonic() - begin < 3 * WAIT, "everything was kept"
        full.record(log, [b"%d x" % written])  # it may have let go of all that was full
        written += 1
        begin = time.monotonic()
        while True:
            kept = client.replay(log, first.position, limit=10_000)
            numbers = [int(entry.data.split()[0]) for entry in kept]
            if numbers == list(range(written - len(numbers), written)):
                break
            # What goes while it is read is missing from the middle: then it has gone the next time.
            assert time.monotonic() - begin < WAIT, numbers
        assert len(numbers) >= 1
        assert client.replay(log, kept[-1].position) == []

    @needs_journal
    @pytest.mark.parametrize("recorded", [True, False])
    def test_closing_ends_a_wait(
        self, broker: BrokerUnderTest, client: QueueBackend, log: str, recorded: bool
    ) -> None:
        after: str | float = 0.0
        if recorded:
            client.record(log, [b"1"])
            after = client.replay(log)[0].position
        waiting = in_thread(lambda: client.replay(log, after, wait=3 * WAIT))
        time.sleep(broker.quiet)
        client.close()
        assert isinstance(waiting.exception(WAIT), BrokerUnavailable)

    @needs_journal
    def test_a_closed_client_neither_records_nor_replays(
        self, client: QueueBackend, log: str
    ) -> None:
        client.record(log, [b"1"])
        (last,) = client.replay(log)
        client.close()
        with pytest.raises(BrokerUnavailable):
            client.record(log, [b"2"])
        with pytest.raises(BrokerUnavailable):
            client.replay(log)
        client.open()
        assert client.replay(log, last.position) == []
        assert client.replay(log) == [last]

    @needs_journal
    def test_a_cut_connection_is_told(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, log: str
    ) -> None:
        other.record(log, [b"1"])
        (last,) = client.replay(log)
        waiting = in_thread(lambda: client.replay(log, last.position, wait=WAIT))
        time.sleep(broker.quiet)
        broker.cut(client)
        other.record(log, [b"2"])
        # Where the cut goes by unnoticed, the entry does not.
        error = waiting.exception(WAIT)
        if error is None:
            assert _data(waiting.result()) == [b"2"]
        else:
            assert isinstance(error, BrokerUnavailable)
        _reopen(client, log)
        assert _data(client.replay(log, last.position)) == [b"2"]

    @needs_journal
    @pytest.mark.parametrize("after", ["", "x", "1.5", "-1", "9" * 40, float("nan"), float("inf")])
    def test_what_no_log_can_be_read_from_is_refused(
        self, client: QueueBackend, log: str, after: str | float
    ) -> None:
        client.record(log, [b"1"])
        with pytest.raises(ConfigurationError):
            client.replay(log, after)
        assert client.is_open
        assert _data(client.replay(log)) == [b"1"]

    @needs_journal
    def test_queues_do_not_notice(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        other: QueueBackend,
        spec: QueueSpec,
        log: str,
    ) -> None:
        publish(client, spec)
        held = take(client, spec)
        publish(client, spec)
        client.record(log, [b"1"])
        (last,) = client.replay(log)
        waiting = in_thread(lambda: client.replay(log, last.position, wait=WAIT))
        client.renew(held)
        assert_counts(other, spec, ready=1, leased=1)
        client.ack(held)
        client.ack(take(client, spec))
        assert client.receive([spec.name], 0) is None
        taking = in_thread(client.receive, [spec.name], WAIT)
        other.record(log, [b"2"])
        assert _data(waiting.result(WAIT)) == [b"2"]
        publish(other, spec)
        delivery = taking.result(WAIT)
        assert delivery is not None
        client.ack(delivery)
        assert_counts(other, spec)


def _data(entries: list[Entry]) -> list[bytes]:
    return [entry.data for entry in entries]


def _reopen(client: QueueBackend, log: str) -> None:
    """Connect anew after a cut; the loss may show only at the first call."""
    for _ in range(5):
        client.open()
        try:
            client.replay(log, limit=1)
            return
        except BrokerUnavailable:
            pass
    raise AssertionError("open() did not make a working connection")
