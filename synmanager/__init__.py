"""Synergos Manager: the job queue of a federated-learning grid."""

__version__ = "0.2.0"
