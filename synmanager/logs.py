"""Which job a line of the log is about, for whoever wants to see it there."""

from __future__ import annotations

import logging

from synmanager.job import running
from synmanager.tracing import trace_id

__all__ = ["JobFilter"]

#: What stands where there is nothing to say.
_NONE = "-"


class JobFilter(logging.Filter):
    """Gives each record ``job_id``, ``phase``, ``attempt`` and ``trace_id``; lets all of them pass.

    Add it to a *handler* of the program's, and all that a callback logs in its own thread, by
    whatever logger, says which job it is of. Outside a callback each is ``-``, and so is
    ``trace_id`` outside a span of OpenTelemetry's. What a record says itself, by ``extra``, stays.

    ::

        handler.addFilter(JobFilter())
        handler.setFormatter(
            logging.Formatter("%(levelname)s %(phase)s/%(job_id)s#%(attempt)s %(message)s")
        )
    """

    def filter(self, record: logging.LogRecord) -> bool:
        job = running.get()
        said = record.__dict__
        said.setdefault("job_id", _NONE if job is None else job.id)
        said.setdefault("phase", _NONE if job is None else job.phase)
        said.setdefault("attempt", _NONE if job is None else job.attempt)
        said.setdefault("trace_id", trace_id() or _NONE)
        return True
