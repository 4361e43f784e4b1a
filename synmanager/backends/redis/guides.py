"""Who knows where the server is that has our keys: Sentinels, or the nodes of a cluster."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from redis import exceptions as redis_errors
from redis.crc import key_slot

from synmanager.backends.redis.faults import callers_own
from synmanager.backends.redis.shapes import each, many, text, whole
from synmanager.backends.urls import spread

__all__ = ["NODE_PORT", "SENTINEL_PORT", "Guide", "Guides", "Nodes", "Sentinels"]

#: Where they listen unless they are told otherwise.
SENTINEL_PORT, NODE_PORT = 26379, 6379

#: Seconds for which the same one is asked again: it may be cut off from the others, together with
#: a server that was the primary.
_TRUSTED = 30.0

_place = each(text, text)
_replicas = many(many(text))

#: What a Sentinel says of a replica that is gone. One that is "disconnected" has been promoted,
#: perhaps: then it hangs up.
_DOWN = {"s_down", "o_down"}

T = TypeVar("T")


class Guide(NamedTuple):
    """One of those who know, a connection to it, and until when it may be asked again."""

    host: str
    port: int
    connection: Any
    until: float


class Guides(ABC):
    """Asked at every connection, and whenever a server is silent; no answer is kept in between.

    Args:
        connect: makes a redis-py connection to a host and a port; it need not be connected yet.
        hosts: of those who know.
    """

    port: int

    def __init__(
        self, connect: Callable[[str, int], Any], hosts: Sequence[tuple[str, int | None]]
    ) -> None:
        self._connect = connect
        self._hosts = hosts

    def locate(self) -> tuple[str, int]:
        """The server's host and port, by the first one that knows.

        Raises:
            redis_errors.RedisError, OSError: none of them knows; the reason of the last one.
        """
        place, guide = self._first(self._ask)
        guide.connection.disconnect()
        return place

    def locate_again(self, guide: Guide | None) -> tuple[tuple[str, int], Guide]:
        """The same, for one who asks every few seconds, and by whom to ask the next time.

        Connections for the questions of thousands would keep those busy who are asked, above all
        with TLS.

        Args:
            guide: whom the last call returned; unless it is returned again, it is hung up on.
        """
        return self._first(self._ask, guide)

    def _first(
        self, ask: Callable[[Any, str], T | None], known: Guide | None = None
    ) -> tuple[T, Guide]:
        """The first answer, and who gave it, to whom the connection is open."""
        failure: Exception = redis_errors.ConnectionError("there is nobody to ask")
        for guide in self._candidates(known):
            try:
                guide.connection.connect()  # does nothing if it is open
                found = ask(guide.connection, guide.host)
            except BaseException as error:
                guide.connection.disconnect()
                if not isinstance(error, redis_errors.RedisError | OSError):
                    raise
                if callers_own(error, None):
                    raise
                failure = error
                continue
            if found is not None:
                return found, guide
            guide.connection.disconnect()
            failure = redis_errors.ConnectionError(f"{guide.host}:{guide.port} {self._ignorance}")
        raise failure

    def _candidates(self, known: Guide | None) -> Iterator[Guide]:
        """Whom to ask. Another one comes first each time: one that is cut off from the others does
        not hear of a failover.
        """
        now = time.monotonic()
        if known is not None:
            if now < known.until:
                yield known
            else:
                known.connection.disconnect()
        for host, port in spread(self._hosts):
            place = host, port or self.port
            yield Guide(*place, self._connect(*place), now + _TRUSTED)

    @property
    @abstractmethod
    def _ignorance(self) -> str:
        """What is said of who does not know."""

    @abstractmethod
    def _ask(self, connection: Any, host: str) -> tuple[str, int] | None: ...


class Sentinels(Guides):
    """Sentinels.

    Args:
        name: of the primary, as they call it.
    """

    port = SENTINEL_PORT

    def __init__(
        self,
        connect: Callable[[str, int], Any],
        hosts: Sequence[tuple[str, int | None]],
        name: str,
    ) -> None:
        super().__init__(connect, hosts)
        self._name = name

    @property
    def _ignorance(self) -> str:
        return f"is a Sentinel that knows no primary {self._name!r}"

    def _ask(self, connection: Any, host: str) -> tuple[str, int] | None:
        connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
        found = connection.read_response()
        return (found[0].decode("utf-8", "replace"), int(found[1])) if _place(found) else None

    def replicas(self) -> list[tuple[str, int]]:
        """Those that are not gone, as the first Sentinel says that knows them.

        Raises:
            redis_errors.RedisError, OSError: none of them does.
        """
        places, guide = self._first(self._ask_for_replicas)
        guide.connection.disconnect()
        return places

    def _ask_for_replicas(self, connection: Any, _: str) -> list[tuple[str, int]] | None:
        connection.send_command("SENTINEL", "REPLICAS", self._name)
        found = connection.read_response()
        if not _replicas(found):
            return None
        places = []
        for fields in found:
            texts = [field.decode("utf-8", "replace") for field in fields]
            replica = dict(zip(texts[::2], texts[1::2], strict=False))
            host, port = replica.get("ip", ""), replica.get("port", "")
            if port.isdecimal() and not _DOWN & {*replica.get("flags", "").split(",")}:
                places.append((host, int(port)))
        return places


class Nodes(Guides):
    """The nodes of a cluster.

    Args:
        key: one of ours; all have the same hash tag, and are in the same slot.
    """

    port = NODE_PORT

    def __init__(
        self,
        connect: Callable[[str, int], Any],
        hosts: Sequence[tuple[str, int | None]],
        key: str,
    ) -> None:
        super().__init__(connect, hosts)
        self._slot = key_slot(key.encode())

    @property
    def _ignorance(self) -> str:
        return f"is a node that knows nobody who serves slot {self._slot}"

    def _ask(self, connection: Any, host: str) -> tuple[str, int] | None:
        connection.send_command("CLUSTER", "SLOTS")
        for first, last, primary, *_ in connection.read_response():
            if whole(first) and whole(last) and first <= self._slot <= last:
                name = primary[0].decode("utf-8", "replace") if primary[0] else ""
                # A node that knows no name of its own means the one that it was reached by.
                return (host if name in ("", "?") else name), int(primary[1])
        return None
