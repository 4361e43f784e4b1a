"""Names on the broker, as released in 0.1.0. They are a contract with every deployed component."""

from __future__ import annotations

__all__ = [
    "COMPLETED_EXCHANGE_NAME",
    "COMPLETED_EXCHANGE_TYPE",
    "COMPLETED_QUEUE",
    "COMPLETED_ROUTING_KEY",
    "EVALUATE_QUEUE",
    "EVALUATE_ROUTING_KEY",
    "EXCHANGE_NAME",
    "EXCHANGE_TYPE",
    "PREPROCESS_QUEUE",
    "PREPROCESS_ROUTING_KEY",
    "TRAIN_QUEUE",
    "TRAIN_ROUTING_KEY",
]

EXCHANGE_NAME = "SynMQ_topic_logs"
EXCHANGE_TYPE = "topic"

PREPROCESS_ROUTING_KEY = "SynMQ_topic_preprocess"
PREPROCESS_QUEUE = "preprocess"

TRAIN_ROUTING_KEY = "SynMQ_topic_train"
TRAIN_QUEUE = "train"

EVALUATE_ROUTING_KEY = "SynMQ_topic_evaluate"
EVALUATE_QUEUE = "evaluate"

COMPLETED_ROUTING_KEY = "SynMQ_fanout_completed"
COMPLETED_EXCHANGE_NAME = "SynMQ_fanout_logs"
COMPLETED_EXCHANGE_TYPE = "fanout"
COMPLETED_QUEUE = "completed"
