"""A TCP proxy that fails on command, between a client and a broker."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType

__all__ = ["Proxy"]

_CHUNK = 65536

#: Seconds after which all that a client has sent is here.
_ON_ITS_WAY = 0.1

#: Seconds that the server gets for a reply that is going to be lost; not all requests have one.
_REPLY = 0.3


class Proxy:
    """Forwards one port to another until told otherwise. Bytes keep their order always.

    Everything it does runs on an event loop in a thread of its own; its methods may be called
    from any thread and take effect before they return.

    Args:
        port, host: of the broker.

    Attributes:
        port: of the proxy, on 127.0.0.1.
        accepted: connections so far.
        requests: what clients have sent so far, in pieces: one for a request that is not long.
        delay: seconds that bytes travel, in each direction.
        loss: the part of chunks that travels ``penalty`` seconds longer, and holds up what
            follows, as a lost segment does until TCP sends it again.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", seed: int = 1) -> None:
        self.accepted = 0
        self.requests = 0
        self.delay = 0.0
        self.loss = 0.0
        self.penalty = 0.3
        self._target = (host, port)
        self._cut: _Cut | None = None
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._links: set[_Link] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._requests = True
        self._replies = True
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(5)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Reset every connection, and take no more. Idempotent."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def silence(self) -> None:
        """Stop forwarding on every present connection, and keep them open.

        What a firewall does that has forgotten them. New connections work.
        """
        self._do_with_each(_Link.silence)

    def freeze(self) -> None:
        """Stop forwarding, now and in new connections, which can be made: a frozen broker."""
        self._requests = self._replies = False
        self._do_with_each(_Link.silence)

    def thaw(self) -> None:
        """Forward again, and first what was kept back."""
        self._requests = self._replies = True
        self._do_with_each(_Link.flow)

    def cut_round_trip(self, number: int, *, acted: bool) -> Callable[[], bool]:
        """Reset the connection of one of the next requests, counted from 1.

        Args:
            acted: after the broker has got it, and answered; else before.

        Returns:
            what tells whether it came to that, and calls it off if not.
        """
        cut = _Cut(self.requests + number, acted)

        def arm() -> None:
            self._cut = cut

        def is_cut() -> bool:
            # What needs no reply may be on its way.
            deadline = time.monotonic() + _ON_ITS_WAY
            while not cut.done and time.monotonic() < deadline:
                time.sleep(0.005)
            self._do(lambda: setattr(self, "_cut", None))
            return cut.done

        self._do(arm)
        return is_cut

    def hold_replies(self) -> None:
        """Let requests through and keep back what the server says, now and in new connections."""
        self._replies = False
        self._do_with_each(_Link.hold_replies)

    def reset(self) -> None:
        """Reset (RST) every present connection at both ends; forget replies that were held."""
        self._requests = self._replies = True
        ended = self._do_with_each(_Link.reset)
        # Only those: their clients may have connected anew by now.
        deadline = time.monotonic() + 5
        while not self._links.isdisjoint(ended):
            assert time.monotonic() < deadline, "the proxy's connections do not end"
            time.sleep(0.001)

    @property
    def connections(self) -> int:
        return len(self._links)

    def travel_time(self) -> float:
        return self.delay + (self.penalty if self._random.random() < self.loss else 0.0)

    def strikes(self) -> _Cut | None:
        """Count a request; the cut, if this is the one."""
        self.requests += 1
        cut = self._cut
        if cut is None or cut.done or self.requests < cut.at:
            return None
        cut.done = True
        return cut

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.add(writer)
        try:
            server = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            return
        self._writers.add(server[1])
        link = _Link(self, (reader, writer), server)
        if not self._requests:
            link.silence()
        elif not self._replies:
            link.hold_replies()
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)

    def _do_with_each(self, action: Callable[[_Link], None]) -> set[_Link]:
        """Act on every present connection; return them."""
        links: set[_Link] = set()

        def act() -> None:
            links.update(self._links)
            for link in links:
                action(link)

        self._do(act)
        return links

    def _do(self, action: Callable[[], None]) -> None:
        done = threading.Event()

        def act() -> None:
            action()
            done.set()

        self._loop.call_soon_threadsafe(act)
        assert done.wait(5), "the proxy does not answer"

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        for link in tuple(self._links):
            link.reset()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()  # also one that would like to send something first
        await asyncio.sleep(0)  # which is when they close their sockets


class _Cut:
    """A request that will not come to a good end."""

    def __init__(self, at: int, acted: bool) -> None:
        self.at = at
        self.acted = acted
        self.done = False


_End = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One forwarded connection."""

    def __init__(self, proxy: Proxy, client: _End, server: _End) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._requests_flow = asyncio.Event()
        self._replies_flow = asyncio.Event()
        self._requests_flow.set()
        self._replies_flow.set()
        self._doomed = False

    def flow(self) -> None:
        self._requests_flow.set()
        self._replies_flow.set()

    def silence(self) -> None:
        self._requests_flow.clear()
        self._replies_flow.clear()

    def hold_replies(self) -> None:
        self._replies_flow.clear()

    def reset(self) -> None:
        _reset(self._client[1])
        _reset(self._server[1])
        self._requests_flow.set()
        self._replies_flow.set()

    async def run(self) -> None:
        await asyncio.gather(
            self._pump(self._client[0], self._server[1], self._requests_flow),
            self._pump(self._server[0], self._client[1], self._replies_flow),
        )

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flow: asyncio.Event
    ) -> None:
        travelling: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        deliver = asyncio.ensure_future(self._deliver(travelling, writer, flow))
        loop = asyncio.get_running_loop()
        arrival = 0.0
        is_request = reader is self._client[0]
        try:
            while data := await reader.read(_CHUNK):
                if self._doomed:
                    if not is_request:
                        self.reset()  # the reply is lost
                    continue
                cut = self._proxy.strikes() if is_request else None
                if cut is not None:
                    if not cut.acted:
                        self.reset()
                        break
                    self._doomed = True
                    loop.call_later(_REPLY, self.reset)
                arrival = max(arrival, loop.time() + self._proxy.travel_time())
                travelling.put_nowait((arrival, data))
        except OSError:
            pass
        travelling.put_nowait((arrival, b""))  # the end travels like everything else
        await deliver

    async def _deliver(
        self,
        travelling: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        flow: asyncio.Event,
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                arrival, data = await travelling.get()
                if arrival > loop.time():
                    await asyncio.sleep(arrival - loop.time())
                await flow.wait()
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
