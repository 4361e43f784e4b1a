"""Synergos Manager: the job queue of a federated-learning grid.

Producers and consumers of the four phases live in ``synmanager.preprocess``, ``.train``,
``.evaluate`` and ``.completed``. :class:`Worker` is what a TTP runs, :class:`Archiver` what a
Director runs.

Everything here is imported when it is first used, so that importing the package costs nothing.
"""

TYPE_CHECKING = False  # known to type checkers by its name; typing itself is slow to import

if TYPE_CHECKING:
    from synmanager import (
        abstract,
        base,
        completed,
        config,
        errors,
        evaluate,
        preprocess,
        train,
    )
    from synmanager.archiver import Archiver
    from synmanager.errors import Cancelled, Reject, Retry
    from synmanager.job import Job, current_job
    from synmanager.jobs import Jobs
    from synmanager.journal.failures import Failure
    from synmanager.message import Rank
    from synmanager.sweep import Sweep
    from synmanager.worker import Worker

__all__ = [
    "Archiver",
    "Cancelled",
    "Failure",
    "Job",
    "Jobs",
    "Rank",
    "Reject",
    "Retry",
    "Sweep",
    "Worker",
    "abstract",
    "base",
    "completed",
    "config",
    "current_job",
    "errors",
    "evaluate",
    "preprocess",
    "train",
]

__version__ = "0.2.0"

_HOMES = {
    "Archiver": "archiver",
    "Cancelled": "errors",
    "Failure": "journal.failures",
    "Job": "job",
    "Jobs": "jobs",
    "Rank": "message",
    "Reject": "errors",
    "Retry": "errors",
    "Sweep": "sweep",
    "Worker": "worker",
    "current_job": "job",
}


if not TYPE_CHECKING:  # which would believe that every name exists

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(f"{__name__}.{_HOMES.get(name, name)}")
        return getattr(module, name) if name in _HOMES else module


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
