"""What a TTP runs: the jobs of several phases by rank, and their results."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import timedelta

from synmanager.engine.callbacks import Callback, adapt
from synmanager.engine.results import Results
from synmanager.engine.service import Service
from synmanager.errors import ConfigurationError
from synmanager.phases import COMPLETED, PHASES, WORK_PHASES, WorkPhase
from synmanager.settings import load_settings
from synmanager.text import quoted

__all__ = ["Worker"]


class Worker(Service):
    """Takes jobs from the highest-ranked phase that has any, one at a time.

    A mapping that a handler returns is published to ``completed`` before its job is acknowledged;
    anything else publishes nothing.

    Args:
        handlers: a callback for each phase, highest rank first. It is called as ``f(**kwargs)``,
            or as ``f(kwargs, host)`` if these are the names of its first two parameters.
        host, port, url, lease, max_attempts: as for an operator.
        time_limit: seconds, or a timedelta, that one attempt of a job may take, unless the job
            says so itself; by default as long as it wants. Past it ``current_job().check()``
            raises; a callback that has not left after ``SYNMANAGER_GRACE`` more is given up.
        tags: what observers shall know of it, such as ``{"gpu", "site-a"}``.

    Raises:
        ConfigurationError: no such phase, or a setting is wrong.
        InvalidCallback: a handler cannot take a job.

    Example:
        >>> from synmanager.train import TrainProducerOperator
        >>> with TrainProducerOperator(url="memory") as producer:
        ...     job_id = producer.submit({"lr": 0.1})
        >>> Worker({"train": lambda lr: {"loss": lr * 2}}, url="memory").run(burst=True)
        1
    """

    def __init__(
        self,
        handlers: Mapping[WorkPhase, Callback],
        host: str | None = None,
        port: int | str | None = None,
        *,
        url: str | None = None,
        lease: float | None = None,
        max_attempts: int | None = None,
        time_limit: float | timedelta | None = None,
        tags: Collection[str] = (),
    ) -> None:
        settings = load_settings(
            host, port, url=url, lease=lease, max_attempts=max_attempts, time_limit=time_limit
        )
        unknown = [name for name in handlers if name not in WORK_PHASES]
        if unknown or not handlers:
            raise ConfigurationError(
                f"a Worker takes handlers for {', '.join(WORK_PHASES)}; "
                f"not {unknown or 'none at all'}"
            )
        phases = [PHASES[name] for name in handlers]
        broker = settings.address.host or "localhost"
        super().__init__(
            settings,
            {
                phase.queue: adapt(handler, None, broker)
                for phase, handler in zip(phases, handlers.values(), strict=True)
            },
            [phase.spec for phase in (*phases, COMPLETED)],
            Results(
                COMPLETED.exchange.name, COMPLETED.routing_key, settings.max_bytes, COMPLETED.queue
            ),
            tags=_valid_tags(tags),
        )


def _valid_tags(tags: Collection[str]) -> list[str]:
    if isinstance(tags, str) or not all(
        isinstance(tag, str) and 0 < len(tag) <= 100 for tag in tags
    ):
        raise ConfigurationError(
            f"tags are several strings of 1 to 100 characters, not {quoted(tags)}"
        )
    return sorted(set(tags))
