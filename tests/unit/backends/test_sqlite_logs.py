"""The journal in SQLite's file."""

from __future__ import annotations

import pytest
from sqlite_file import Jobs, publish, take

from synmanager.errors import ConfigurationError


def test_a_file_with_a_log_is_still_an_older_version_s(jobs: Jobs) -> None:
    client = jobs.open()
    before = jobs.execute("PRAGMA user_version")
    client.record("events", [b"1"])
    publish(client)
    assert jobs.execute("PRAGMA user_version") == before
    client.close()
    again = jobs.open()
    again.ack(take(again))
    assert [entry.data for entry in again.replay("events")] == [b"1"]


def test_what_is_too_old_goes(jobs: Jobs) -> None:
    client = jobs.open(journal_age=60)
    client.record("events", [b"%d" % number for number in range(2500)])
    jobs.clocks.skipped += 50
    client.record("events", [b"later"])
    assert len(client.replay("events", limit=5000)) == 2501
    jobs.clocks.skipped += 20
    for _ in range(3):  # a page at a time
        client.record("events", [b"last"])
    left = [entry.data for entry in client.replay("events", limit=5000)]
    assert left == [b"later", b"last", b"last", b"last"]


def test_the_last_entry_stays_whatever_its_size(jobs: Jobs) -> None:
    client = jobs.open(journal_bytes=10)
    for _ in range(3):
        client.record("events", [b"x" * 100, b"y" * 100])
        assert [entry.data for entry in client.replay("events")] == [b"y" * 100]
    client.record("events", [b"12345", b"12345"])
    assert [entry.data for entry in client.replay("events")] == [b"12345"] * 2
    client.record("events", [b"6"])
    assert [entry.data for entry in client.replay("events")] == [b"12345", b"6"]


def test_a_clock_that_is_set_back_keeps_the_order(jobs: Jobs) -> None:
    client = jobs.open()
    client.record("events", [b"1", b"2"])
    jobs.clocks.skipped -= 3600
    client.record("events", [b"3"])
    entries = client.replay("events")
    assert [entry.data for entry in entries] == [b"1", b"2", b"3"]
    assert client.replay("events", entries[1].position) == entries[2:]
    assert client.replay("events", entries[1].recorded_at) == entries[1:]


def test_positions_go_on_upwards_in_a_new_file(jobs: Jobs) -> None:
    client = jobs.open()
    client.record("events", [b"1"])
    (last,) = client.replay("events")
    jobs.execute("DROP TABLE journal_events")
    assert client.replay("events") == []
    client.record("events", [b"2"])
    assert [entry.data for entry in client.replay("events", last.position)] == [b"2"]


@pytest.mark.parametrize("log", ["", "Events", "a b", "x'; DROP TABLE jobs", "évènements", "a1"])
def test_a_name_that_is_none(jobs: Jobs, log: str) -> None:
    client = jobs.open()
    with pytest.raises(ConfigurationError):
        client.record(log, [b"1"])
    with pytest.raises(ConfigurationError):
        client.replay(log)
