"""RabbitMQ, through pika."""

from __future__ import annotations

from synmanager.backends.rabbitmq.backend import RabbitMQBackend

__all__ = ["RabbitMQBackend"]
