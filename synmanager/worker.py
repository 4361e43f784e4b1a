"""What a TTP runs: the jobs of several phases by rank, and their results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synmanager.callbacks import Callback, adapt
from synmanager.errors import ConfigurationError
from synmanager.job import Job
from synmanager.message import Message, encode
from synmanager.phases import COMPLETED, PHASES
from synmanager.service import Service
from synmanager.settings import load_settings

__all__ = ["Worker", "result_id"]


def result_id(job: Job) -> str:
    """The id of a job's result: the same for every run of the job, so that a repeat shows."""
    return f"{job.id}.{job.phase}.result"  # one id may be in use in several phases


class Worker(Service):
    """Takes jobs from the highest-ranked phase that has any, one at a time.

    A dict that a handler returns is published to ``completed`` before its job is acknowledged;
    None publishes nothing.

    Args:
        handlers: a callback for each phase, highest rank first. It is called as ``f(**kwargs)``,
            or as ``f(kwargs, host)`` if these are the names of its first two parameters.
        host, port, url, lease, max_attempts: as for an operator.

    Raises:
        ConfigurationError: no such phase, or a setting is wrong.
        InvalidCallback: a handler cannot take a job.
    """

    def __init__(
        self,
        handlers: Mapping[str, Callback],
        host: str | None = None,
        port: int | str | None = None,
        *,
        url: str | None = None,
        lease: float | None = None,
        max_attempts: int | None = None,
    ) -> None:
        settings = load_settings(host, port, url=url, lease=lease, max_attempts=max_attempts)
        known = [name for name in PHASES if name != COMPLETED.name]
        unknown = [name for name in handlers if name not in known]
        if unknown or not handlers:
            raise ConfigurationError(
                f"a Worker takes handlers for {', '.join(known)}; not {unknown or 'none at all'}"
            )
        phases = [PHASES[name] for name in handlers]
        broker = settings.address.host or "localhost"
        self._max_bytes = settings.max_bytes
        super().__init__(
            settings,
            {phase.queue: adapt(handlers[phase.name], None, broker) for phase in phases},
            [phase.spec for phase in (*phases, COMPLETED)],
            on_result=self._publish,
        )

    def _publish(self, job: Job, result: Any) -> None:
        message = Message(encode(result, self._max_bytes), id=result_id(job))
        self._session.publish(
            COMPLETED.exchange.name,
            COMPLETED.routing_key,
            [message],
            endless=True,  # the job is done: there is nothing better to wait for
            called_off=self._runner.overdue,
        )
