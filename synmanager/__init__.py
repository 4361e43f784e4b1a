"""Synergos Manager: the job queue of a federated-learning grid.

Producers and consumers of the four phases live in ``synmanager.preprocess``, ``.train``,
``.evaluate`` and ``.completed``.
"""

from synmanager import abstract, base, completed, config, evaluate, preprocess, train
from synmanager.errors import Reject, Retry
from synmanager.job import Job, current_job
from synmanager.message import Rank

__all__ = [
    "Job",
    "Rank",
    "Reject",
    "Retry",
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
