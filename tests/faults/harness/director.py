"""The test's own view of the broker, through the public API."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from harness.journal import Journal
from synmanager.backends.base import Counts, DeadLetter, Features
from synmanager.backends.registry import create_backend
from synmanager.completed import CompletedConsumerOperator
from synmanager.settings import load_settings
from synmanager.train import TrainConsumerOperator, TrainProducerOperator


class Director:
    """Submits to ``train`` and looks at what is where. Each call is a connection of its own.

    Args:
        url: of the broker, not of a proxy: it must see what the programs under test cannot.
        journal: every job submitted is noted there as confirmed.
    """

    def __init__(self, url: str, journal: Journal) -> None:
        self._url = url
        self._journal = journal

    def submit(self, jobs: Iterable[Mapping[str, Any]]) -> set[str]:
        """Submit jobs, each with a "key" of its own; return the keys."""
        batch = list(jobs)
        with TrainProducerOperator(url=self._url) as producer:
            producer.submit_many(batch)
        for job in batch:
            self._journal.write("confirmed", key=job["key"])
        return {job["key"] for job in batch}

    @property
    def features(self) -> Features:
        """What the broker under test can do."""
        return create_backend(load_settings(url=self._url).address).features

    def counts(self, queue: str = "train") -> Counts:
        backend = create_backend(load_settings(url=self._url).address)
        backend.open()
        try:
            return backend.count(queue)
        finally:
            backend.close()

    def declare(self) -> None:
        """Make the queues of ``train`` and ``completed``, as a first connection does."""
        for kind in (TrainConsumerOperator, CompletedConsumerOperator):
            with kind(url=self._url):
                pass

    def dead_letters(self) -> list[DeadLetter]:
        with TrainConsumerOperator(url=self._url) as consumer:
            return consumer.dead_letters(limit=100_000)

    def dead_keys(self) -> set[str]:
        return {json.loads(letter.message.body)["key"] for letter in self.dead_letters()}

    def results(self) -> list[dict[str, Any]]:
        """Take every result that waits in ``completed``."""
        found: list[dict[str, Any]] = []
        with CompletedConsumerOperator(url=self._url) as consumer:
            while consumer.check_message_count():  # however long each takes to come
                consumer.poll_message(lambda **result: found.append(result))
        return found
