"""Whole programs of both versions on one RabbitMQ, as in an upgrade: each pair, and all at once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import released
from exchange import MAKERS, fresh_queues
from roles import consumer_class, producer_class
from threads import in_thread, until

from synmanager import Archiver, Worker
from synmanager.phases import WORK_PHASES

RUNS = 8

#: Seconds between the turns of a loop that finds nothing; 0.1.0's programs sleep for 5.
PAUSE = 0.02


def work(kwargs: dict[str, Any], by: str) -> dict[str, Any]:
    return {**kwargs, "by": by}


class Ending:
    """Told to the programs that would run for ever."""

    def __init__(self) -> None:
        self.now = threading.Event()
        self.calls: list[Callable[[], object]] = [self.now.set]

    def __call__(self) -> None:
        for call in self.calls:
            call()


class Release:
    """The calls of 0.1.0, on its own components."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stack = ExitStack()

    def __enter__(self) -> Release:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def producer(self, phase: str) -> Any:
        return self._connected(released.Producer(self._url, phase))

    def consumer(self, phase: str) -> Any:
        return self._connected(released.Consumer(self._url, phase))

    def stop(self, consumer: Any) -> None:
        """End ``listen_message`` from another thread."""
        consumer.channel.connection.add_callback_threadsafe(consumer.channel.stop_consuming)

    def _connected(self, component: Any) -> Any:
        component.connect()
        self._stack.callback(component.disconnect)
        return component


class Upgraded(Release):
    """The calls of 0.1.0, on this project's components."""

    def producer(self, phase: str) -> Any:
        return self._connected(producer_class(phase)(url=self._url))

    def consumer(self, phase: str) -> Any:
        return self._connected(consumer_class(phase)(url=self._url))

    def stop(self, consumer: Any) -> None:
        consumer.stop()


def released_ttp(version: type[Release], url: str, by: str, ending: Ending) -> None:
    """The loop of 0.1.0's TTPs: count, poll the highest-ranked, publish, sleep."""
    with version(url) as components:
        consumers = [components.consumer(phase) for phase in WORK_PHASES]
        completed = components.producer("completed")
        while not ending.now.is_set():
            for consumer in consumers:
                if consumer.check_message_count():
                    result = consumer.poll_message(lambda **kwargs: work(kwargs, by))
                    if result is not None:  # else another was faster
                        completed.process(**result)
                    break
            else:
                time.sleep(PAUSE)


def new_ttp(url: str, by: str, ending: Ending) -> None:
    worker = Worker(dict.fromkeys(WORK_PHASES, lambda **kwargs: work(kwargs, by)), url=url)
    ending.calls.append(worker.stop)
    worker.run()


def released_director(version: type[Release], url: str, by: str, ending: Ending) -> None:
    """Submits with ``process``, one producer for each submission."""
    for phase in reversed(WORK_PHASES):
        with version(url) as components:
            producer = components.producer(phase)
            for run in range(RUNS):
                producer.process(phase=phase, run=run, sent_by=by)


def new_director(url: str, by: str, ending: Ending) -> None:
    for phase in reversed(WORK_PHASES):
        with producer_class(phase)(url=url) as producer:
            jobs = [{"phase": phase, "run": run, "sent_by": by} for run in range(RUNS)]
            producer.submit(jobs[0], priority="high", delay=0.1)
            producer.submit(jobs[1], priority="low")
            producer.submit_many(jobs[2:])


class Archive:
    """What a Director writes down."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []

    def add(self, **result: Any) -> None:
        self.results.append(result)

    @property
    def jobs(self) -> Counter[tuple[str, int, str]]:
        return Counter((r["phase"], r["run"], r["sent_by"]) for r in self.results)


def released_archive(version: type[Release], url: str, archive: Archive, ending: Ending) -> None:
    with version(url) as components:
        consumer = components.consumer("completed")
        ending.calls.append(lambda: components.stop(consumer))
        consumer.listen_message(archive.add)


def new_archive(url: str, archive: Archive, ending: Ending) -> None:
    archiver = Archiver(archive.add, url=url)
    ending.calls.append(archiver.stop)
    archiver.run()


DIRECTORS: dict[str, Any] = {
    "0.1.0": lambda *args: released_director(Release, *args),
    "0.1.0's on new components": lambda *args: released_director(Upgraded, *args),
    "new": new_director,
}
ARCHIVES: dict[str, Any] = {
    "0.1.0": lambda *args: released_archive(Release, *args),
    "0.1.0's on new components": lambda *args: released_archive(Upgraded, *args),
    "new": new_archive,
}
TTPS: dict[str, Any] = {
    "0.1.0": lambda *args: released_ttp(Release, *args),
    "0.1.0's on new components": lambda *args: released_ttp(Upgraded, *args),
    "new": new_ttp,
}


@pytest.fixture(params=MAKERS)
def url(request: pytest.FixtureRequest, amqp_url: str) -> Iterator[str]:
    """A broker whose queues one version or the other made."""
    with fresh_queues(amqp_url, request.param):
        yield amqp_url


def everything(*directors: str) -> Counter[tuple[str, int, str]]:
    return Counter(
        (phase, run, by) for phase in WORK_PHASES for run in range(RUNS) for by in directors
    )


@pytest.mark.parametrize("ttp", TTPS)
@pytest.mark.parametrize("director", DIRECTORS)
def test_one_director_and_one_ttp(url: str, director: str, ttp: str) -> None:
    ending, archive = Ending(), Archive()
    DIRECTORS[director](url, director, ending)
    joins = [
        in_thread(TTPS[ttp], url, ttp, ending),
        in_thread(ARCHIVES[director], url, archive, ending),
    ]
    until(lambda: archive.jobs == everything(director), "all results", within=60)
    ending()
    for join in joins:
        join()
    assert archive.jobs == everything(director)
    if director != "new":  # whose first jobs were delayed
        in_order = [(result["phase"], result["run"]) for result in archive.results]
        assert in_order == [(phase, run) for phase in WORK_PHASES for run in range(RUNS)]


def test_all_at_once(url: str) -> None:
    """A named subscriber has every result; the others share 0.1.0's queue."""
    ending, shared, named = Ending(), Archive(), Archive()
    subscriber = Archiver(named.add, "test-side-by-side", url=url)
    subscriber.subscribe()
    ending.calls.append(subscriber.stop)
    joins = [in_thread(subscriber.run)]
    joins += [in_thread(archive, url, shared, ending) for archive in ARCHIVES.values()]
    joins += [in_thread(ttp, url, name, ending) for name, ttp in TTPS.items()]
    joins += [in_thread(director, url, name, ending) for name, director in DIRECTORS.items()]
    expected = everything(*DIRECTORS)
    try:
        until(lambda: shared.jobs == named.jobs == expected, "all results", within=60)
        # Whoever connects first may run them all.
        assert {result["by"] for result in named.results} <= set(TTPS)
    finally:
        ending()
        for join in joins:
            join()
        channel = released.open_channel(url)
        for queue in ("completed-test-side-by-side", "completed-test-side-by-side.dead"):
            channel.queue_delete(queue)
        channel.connection.close()
    assert shared.jobs == named.jobs == expected
