"""What Prometheus scrapes. Needs the package ``prometheus-client``, and imports it.

A metric that nobody can tell the value of is left out: it is never 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    generate_latest,
    start_http_server,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)

from synmanager import __version__
from synmanager.backends.base import Counts
from synmanager.journal.tally import BOUNDS, OTHER, RANKS, Durations, Tally
from synmanager.phases import COMPLETED, PHASES

__all__ = ["Collector", "Watched", "serve", "written"]

#: What a worker that has not left can be.
_WORKER_STATES = ("idle", "busy", "leaving")


#: Of which the journal tells all: of results on their way to an archive, it tells only deaths.
_TOLD = tuple(phase.queue for phase in PHASES.values() if phase is not COMPLETED)


class Watched(Protocol):
    """What is looked at: somebody follows the journal and counts the queues.

    Attributes:
        tally: of the journal.
        hears: something was ever recorded in the journal, and all that there was has been read.
        counts: of each queue by its name; None for one that is not there or cannot be counted.
        is_up: the broker answers.
    """

    @property
    def tally(self) -> Tally: ...  # pragma: no cover

    @property
    def hears(self) -> bool: ...  # pragma: no cover

    @property
    def counts(self) -> Mapping[str, Counts | None]: ...  # pragma: no cover

    @property
    def is_up(self) -> bool: ...  # pragma: no cover

    def looking(self) -> AbstractContextManager[object]:
        """Nothing changes in this ``with`` block, which is a short one."""
        ...  # pragma: no cover


class Collector:
    """The metrics of one broker, for a registry of ``prometheus_client``; it asks nobody."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched

    def describe(self) -> Iterable[Any]:
        """Nothing: what there is, is known when it is collected."""
        return ()

    def collect(self) -> Iterable[Any]:
        watched = self._watched
        with watched.looking():
            found = [
                _info("synmanager_build", "What exports these metrics.", version=__version__),
                _gauge("broker_up", "Whether the broker answers.", {(): float(watched.is_up)}),
                _gauge(
                    "journal_up",
                    "Whether anything is recorded in the broker's journal, which most metrics "
                    "stand on; not where all have SYNMANAGER_JOURNAL=off.",
                    {(): float(watched.hears)},
                ),
            ]
            found += _queues(watched)
            if watched.hears:
                found += _now(watched)
                found += _counted(watched.tally)
        return found


def written(watched: Watched) -> tuple[bytes, str]:
    """The metrics as a page of somebody else's server, and its content type."""
    return generate_latest(_registry(watched)), CONTENT_TYPE_LATEST


def serve(watched: Watched, host: str, port: int) -> tuple[int, Callable[[], None]]:
    """Serve the metrics over HTTP, from a thread; returns the port, and what ends it.

    Raises:
        OSError: there can be no server at this address.
    """
    server, thread = start_http_server(port, host, _registry(watched))

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return server.server_port, end


def _registry(watched: Watched) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(cast(Any, Collector(watched)))
    return registry


def _queues(watched: Watched) -> Iterator[Any]:
    """Jobs by state: by the broker where it can tell, else by the journal."""
    now, tally = time.time(), watched.tally
    told: dict[str, Mapping[str, int]] = {}
    if watched.hears:
        told = {"running": tally.running(), "delayed": tally.delayed(now)}
    values: dict[tuple[str, ...], float] = {}
    for phase, counts in watched.counts.items():
        if counts is None:
            continue
        for state, number in (
            ("ready", counts.ready),
            ("running", counts.leased),
            ("delayed", counts.delayed),
            ("dead", counts.dead),
        ):
            if number is None and state in told and phase in _TOLD:
                number = told[state].get(phase, 0)
            if number is not None:
                values[phase, state] = number
    if values:
        yield _gauge("jobs", "Jobs in a phase's queue, by state.", values, ("phase", "state"))


def _now(watched: Watched) -> Iterator[Any]:
    """What is so by the journal."""
    now, tally, counts = time.time(), watched.tally, watched.counts
    there = {phase: found for phase, found in counts.items() if found is not None}
    # A queue that was purged is empty, and the journal does not know it.
    empty = {phase for phase, found in there.items() if not found.ready}
    ready: dict[tuple[str, ...], float] = {
        (phase, rank): 0 for phase in _TOLD if phase in there for rank in RANKS
    }
    ready.update({each: n for each, n in tally.ready(now).items() if each[0] not in empty})
    yield _gauge("ready_jobs", "Jobs that could be taken, by rank.", ready, ("phase", "rank"))
    yield _gauge(
        "oldest_ready_job_age_seconds",
        "For how long the job has been ready that has been for longest.",
        {(phase,): age for phase, age in tally.oldest(now).items() if phase not in empty},
        ("phase",),
    )
    yield _gauge(
        "running_job_silence_seconds",
        "The longest time since a running job gave a sign of life. One is written every 30 "
        "seconds, or after a hundredth of the job's age.",
        {(phase,): age for phase, age in tally.silence(now).items()},
        ("phase",),
    )
    workers: dict[tuple[str, ...], float] = {(state,): 0 for state in _WORKER_STATES}
    for state, number in tally.workers().items():
        label = state if state in _WORKER_STATES else OTHER
        workers[label,] = workers.get((label,), 0) + number
    yield _gauge("workers", "Workers that have not left, by state.", workers, ("state",))
    yield _gauge(
        "journal_last_event_timestamp_seconds",
        "When the journal's latest event was recorded, by its writer's clock.",
        {(): tally.heard_at},
    )


def _counted(tally: Tally) -> Iterator[Any]:
    """What has happened since the counting began."""
    for name, help_text, counter in (
        ("jobs_submitted", "Jobs that were queued.", tally.submitted),
        ("job_retries", "Attempts that failed and are followed by another.", tally.retried),
        ("jobs_given_back", "Attempts that were given back and cost none.", tally.given_back),
        ("job_lost_leases", "Jobs that were lost to another worker while they ran.", tally.lost),
        ("job_late_renewals", "Renewals that came after more than half a lease.", tally.late),
    ):
        yield _counter(name, help_text, {(phase,): n for phase, n in counter.items()}, ("phase",))
    ended: dict[tuple[str, ...], float] = {
        (phase, outcome): n for (phase, outcome), n in tally.ended.items()
    }
    yield _counter(
        "jobs_ended",
        "Jobs that have succeeded, were cancelled, or became dead letters.",
        ended,
        ("phase", "outcome"),
    )
    yield _histogram(
        "job_waiting_seconds",
        "From when a job is ready until it begins, or is ended without that.",
        tally.waited,
    )
    yield _histogram("job_running_seconds", "From an attempt's beginning to its end.", tally.ran)


def _info(name: str, help_text: str, **values: str) -> Any:
    family = InfoMetricFamily(name, help_text)
    family.add_metric((), values)
    return family


def _gauge(
    name: str,
    help_text: str,
    values: Mapping[tuple[str, ...], float],
    labels: tuple[str, ...] = (),
) -> Any:
    family = GaugeMetricFamily(f"synmanager_{name}", help_text, labels=labels)
    for each, value in values.items():
        family.add_metric(each, value)
    return family


def _counter(
    name: str,
    help_text: str,
    values: Mapping[tuple[str, ...], float],
    labels: tuple[str, ...],
) -> Any:
    family = CounterMetricFamily(f"synmanager_{name}", help_text, labels=labels)
    for each, value in values.items():
        family.add_metric(each, value)
    return family


def _histogram(name: str, help_text: str, values: Mapping[tuple[str, str], Durations]) -> Any:
    family = HistogramMetricFamily(f"synmanager_{name}", help_text, labels=("phase", "outcome"))
    for each, durations in values.items():
        buckets, below = [], 0
        for bound, number in zip((*map(str, BOUNDS), "+Inf"), durations.counts, strict=True):
            below += number
            buckets.append((bound, below))
        family.add_metric(each, buckets, durations.total)
    return family
