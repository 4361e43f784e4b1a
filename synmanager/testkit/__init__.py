"""What users test their own code with: no broker, no waiting, and failures on command.

pytest has it as fixtures, ``synmanager_broker`` and ``synmanager_clock``, as soon as synmanager is
installed; ``docs/testing.md`` shows them. Other frameworks use the same by hand::

    with FakeBroker() as broker:
        submit_sweep(broker.url)          # your code
        broker.drain({"train": train})    # retries and delays included, at once
        assert [result["loss"] for result in broker.results()] == [0.1, 0.2]

Whoever writes a backend, and wants to know whether it is one, looks for ``synmanager.testing``.
"""

from __future__ import annotations

from synmanager.testkit.broker import FakeBroker, Waiting
from synmanager.testkit.clock import TravellingClock
from synmanager.testkit.running import Outcome, Progress, run_job

__all__ = ["FakeBroker", "Outcome", "Progress", "TravellingClock", "Waiting", "run_job"]
