"""What a Director runs: every result to a callback, one at a time, in order."""

from __future__ import annotations

import re

from synmanager.backends.base import QueueSpec
from synmanager.callbacks import Callback, adapt
from synmanager.errors import ConfigurationError
from synmanager.phases import COMPLETED
from synmanager.service import Service
from synmanager.settings import load_settings

__all__ = ["Archiver"]


class Archiver(Service):
    """Hands the results of ``completed`` to a callback.

    Args:
        callback: called as ``f(**result)``, or as ``f(kwargs, host)`` if these are the names of
            its first two parameters.
        subscriber: each named subscriber gets every result from the moment it first ran, also
            those published while it is away. Without a name, this is one of the consumers that
            share 0.1.0's ``completed`` queue.
        host, port, url, lease, max_attempts: as for an operator.

    Raises:
        ConfigurationError: a setting, or the subscriber's name, is wrong.
        InvalidCallback: the callback cannot take a result.
    """

    def __init__(
        self,
        callback: Callback,
        subscriber: str | None = None,
        host: str | None = None,
        port: int | str | None = None,
        *,
        url: str | None = None,
        lease: float | None = None,
        max_attempts: int | None = None,
    ) -> None:
        settings = load_settings(host, port, url=url, lease=lease, max_attempts=max_attempts)
        queue = COMPLETED.queue
        if subscriber is not None:
            # No dot: "<queue>.dead" is taken, for a queue's dead letters.
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", subscriber):
                raise ConfigurationError(
                    f"a subscriber's name is 1 to 100 letters, digits, - or _; not {subscriber!r}"
                )
            queue = f"{COMPLETED.queue}-{subscriber}"
        super().__init__(
            settings,
            {queue: adapt(callback, None, settings.address.host or "localhost")},
            [COMPLETED.spec, QueueSpec(queue, COMPLETED.exchange, COMPLETED.routing_key)],
        )

    def subscribe(self) -> None:
        """Make the subscription exist, without running: results wait in it from now on.

        Raises:
            BrokerUnavailable: nobody answers.
        """
        if self._session.is_open:  # run() has made it
            return
        try:
            self._session.open(*self._specs)
        finally:
            self._session.close()
