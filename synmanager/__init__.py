"""Synergos Manager: the job queue of a federated-learning grid.

Producers and consumers of the four phases live in ``synmanager.preprocess``, ``.train``,
``.evaluate`` and ``.completed``. :class:`Worker` is what a TTP runs, :class:`Archiver` what a
Director runs.
"""

from synmanager import abstract, base, completed, config, evaluate, preprocess, train
from synmanager.archiver import Archiver
from synmanager.errors import Reject, Retry
from synmanager.job import Job, current_job
from synmanager.message import Rank
from synmanager.worker import Worker

__all__ = [
    "Archiver",
    "Job",
    "Rank",
    "Reject",
    "Retry",
    "Worker",
    "abstract",
    "base",
    "completed",
    "config",
    "current_job",
    "evaluate",
    "preprocess",
    "train",
]

__version__ = "0.2.0"
