"""SQLite: operators against sqlite3, and against the SQLite storages of huey and kombu."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.bench import Bench, Row
from benchmarks.brokers import BrokerMissing
from benchmarks.job import BODY, JOB
from benchmarks.method import Comparison, Goal, Result, rounds
from benchmarks.ours import Ours
from benchmarks.raw.sqlite import HueyStorage, KombuQueue, QueueTable, SQLiteTable

_UNIT = "jobs/s"
_MODE = "WAL, synchronous=FULL; the body is encoded beforehand, and has no id, rank or route"
_FAIR = (
    "the same mode; json.dumps for each job, id, rank, time and checksum in columns, an index that "
    "keeps ids apart and one for the order; no validation, route, bell, lock or journal"
)


def _run(
    bench: Bench,
    work: str,
    against: str,
    goal: Goal,
    count: int,
    ours: Callable[[Ours, int], float],
    raw: Callable[[SQLiteTable, int], float],
) -> Iterator[Result]:
    count = bench.count(count)
    url = bench.brokers.sqlite
    with Ours(url) as mine, SQLiteTable(_beside(url), BODY) as table:
        rates = rounds(
            {"ours": lambda: ours(mine, count), "raw": lambda: raw(table, count)}, bench.repeats
        )
    yield Comparison(work, against, _UNIT, rates["ours"], rates["raw"], goal, [_MODE])


def _submit(
    bench: Bench,
    work: str,
    each: str,
    goal: Goal,
    count: int,
    ours: Callable[[Ours, int], float],
    bare: Callable[[SQLiteTable, int], float],
    fair: Callable[[QueueTable, int], float],
) -> Iterator[Result]:
    count = bench.count(count)
    url = bench.brokers.sqlite
    beside = _beside(url)
    with Ours(url) as mine, SQLiteTable(beside, BODY) as table, QueueTable(beside, JOB) as queue:
        rates = rounds(
            {
                "ours": lambda: ours(mine, count),
                "bare": lambda: bare(table, count),
                "fair": lambda: fair(queue, count),
            },
            bench.repeats,
        )
    for side, against, mode in (
        ("bare", f"{each}, a number and a body", _MODE),
        ("fair", f"{each}, what a queue's table needs", _FAIR),
    ):
        yield Comparison(work, against, _UNIT, rates["ours"], rates[side], goal, [mode])


def _others(
    bench: Bench, package: str, kind: type[HueyStorage] | type[KombuQueue]
) -> Iterator[Result]:
    if importlib.util.find_spec(package) is None:
        raise BrokerMissing(f"{package} is not installed: pip install -e '.[bench]'")
    count = bench.count(1_000)
    url = bench.brokers.sqlite
    with tempfile.TemporaryDirectory(dir=_beside(url)) as directory, Ours(url) as ours:
        theirs = kind(Path(directory), BODY)
        settings = [(kind.__doc__ or "").partition("\n")[0]]
        for work, mine, other in (
            ("process() one by one", ours.process, theirs.publish_each),
            ("listen_message, empty callback", ours.listen, theirs.consume),
        ):
            rates = rounds(
                {"ours": partial(mine, count), "theirs": partial(other, count)}, bench.repeats
            )
            yield Comparison(
                f"{work}, SQLite",
                f"{package} on SQLite",
                _UNIT,
                rates["ours"],
                rates["theirs"],
                Goal(">", 1),
                settings,
            )


def _beside(url: str) -> Path:
    """The directory of the file, so that all sides write to the same disk."""
    return Path(url.removeprefix("sqlite:///")).parent


ROWS = (
    Row(
        "sqlite-process",
        "process() one by one against sqlite3",
        partial(
            _submit,
            work="process() one by one, SQLite",
            each="sqlite3 INSERTs",
            goal=Goal(">=", 0.8),
            count=2_000,
            ours=Ours.process,
            bare=SQLiteTable.publish_each,
            fair=QueueTable.publish_each,
        ),
    ),
    Row(
        "sqlite-submit-many",
        "submit_many against executemany",
        partial(
            _submit,
            work="submit_many of 10,000, SQLite",
            each="sqlite3 executemany",
            goal=Goal(">=", 0.5),
            count=10_000,
            ours=Ours.submit_many,
            bare=SQLiteTable.publish_many,
            fair=QueueTable.publish_many,
        ),
    ),
    Row(
        "sqlite-listen",
        "listen_message against sqlite3",
        partial(
            _run,
            work="listen_message, empty callback, SQLite",
            against="sqlite3 SELECT and DELETE, a transaction each",
            goal=Goal(">=", 0.8),
            count=2_000,
            ours=Ours.listen,
            raw=SQLiteTable.consume,
        ),
    ),
    Row(
        "sqlite-huey",
        "one by one against huey's SQLite storage with its fsync on",
        partial(_others, package="huey", kind=HueyStorage),
    ),
    Row(
        "sqlite-kombu",
        "one by one against kombu's SQLAlchemy transport on SQLite",
        partial(_others, package="kombu", kind=KombuQueue),
    ),
)
