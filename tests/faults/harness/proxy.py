"""A TCP proxy that fails on command, between a client and a broker."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType

from harness.waiting import wait_until

_CHUNK = 65536


class Proxy:
    """Forwards one port to another until told otherwise. Bytes keep their order always.

    Everything it does runs on an event loop in a thread of its own; its methods may be called
    from any thread and take effect before they return.

    Attributes:
        accepted: connections so far.
        delay: seconds that bytes travel, in each direction.
        loss: the part of chunks that travels ``penalty`` seconds longer, and holds up what
            follows, as a lost segment does until TCP sends it again.
    """

    def __init__(self, target: int, seed: int = 1) -> None:
        self.accepted = 0
        self.delay = 0.0
        self.loss = 0.0
        self.penalty = 0.3
        self._target = target
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._links: set[_Link] = set()
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
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def silence(self) -> None:
        """Stop forwarding on every present connection, and keep them open.

        What a firewall does that has forgotten them. New connections work.
        """
        self._do_with_each(_Link.silence)

    def hold_replies(self) -> None:
        """Let requests through and keep back what the server says, now and in new connections."""
        self._replies = False
        self._do_with_each(_Link.hold_replies)

    def reset(self) -> None:
        """Reset (RST) every present connection at both ends; forget replies that were held."""
        self._replies = True
        ended = self._do_with_each(_Link.reset)
        # Only those: their clients may have connected anew by now.
        wait_until(lambda: self._links.isdisjoint(ended), 5, "the proxy's connections end")

    @property
    def connections(self) -> int:
        return len(self._links)

    def travel_time(self) -> float:
        return self.delay + (self.penalty if self._random.random() < self.loss else 0.0)

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            server = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            _reset(writer)
            return
        link = _Link(self, (reader, writer), server)
        if not self._replies:
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
        try:
            while data := await reader.read(_CHUNK):
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
