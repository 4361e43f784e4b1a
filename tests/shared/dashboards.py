"""A dashboard of a test's own, on a port of its own, and a client that is no browser."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from threads import WAIT, in_thread, until

from synmanager.settings import load_settings
from synmanager.web.app import make_app
from synmanager.web.gate import Guards
from synmanager.web.observer import Observer
from synmanager.web.serve import Server, listen

__all__ = ["Answer", "Site", "serving"]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str

    def hidden(self, name: str) -> str:
        """The value of a form's hidden field."""
        found = re.search(rf'name="{name}" value="([^"]*)"', self.text)
        assert found is not None, self.text
        return found[1]


@dataclass
class Site:
    """A dashboard that runs.

    Attributes:
        cookie: that the client sends.
    """

    observer: Observer
    port: int
    cookie: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, path: str, method: str = "GET", body: str | None = None, **headers: str
    ) -> Answer:
        """One request. Names of headers are written with ``_``."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        sent = {"Accept": "text/html", **self.headers}
        if self.cookie:
            sent["Cookie"] = self.cookie
        sent.update({name.replace("_", "-"): text for name, text in headers.items()})
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            found = {name.lower(): text for name, text in answer.getheaders()}
            return Answer(answer.status, found, answer.read().decode())
        finally:
            connection.close()

    def get(self, path: str, **query: str) -> Answer:
        return self.ask(f"{path}?{urlencode(query)}" if query else path)

    def post(self, path: str, fields: Mapping[str, str], **headers: str) -> Answer:
        kind = "application/x-www-form-urlencoded"
        return self.ask(path, "POST", urlencode(fields), Content_Type=kind, **headers)

    def do(self, action: str, **about: str) -> Answer:
        """Ask for an action, and say yes."""
        asked = self.get(f"/do/{action}", **about)
        assert asked.status == 200, asked.text
        fields = {**about, **{name: asked.hidden(name) for name in ("form", "number")}}
        return self.post(f"/do/{action}", fields)

    def until_caught_up(self) -> None:
        """Wait until it has read and counted what there is."""
        observer = self.observer
        until(lambda: observer.is_caught_up and len(observer.counts) >= 4, "caught up")

    @contextmanager
    def watching(self, path: str) -> Iterator[Iterator[dict[str, Any]]]:
        """The news of a page, as a browser gets them."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        connection.request("GET", f"/live?{urlencode({'of': path})}", headers=self.headers)
        answer = connection.getresponse()
        try:
            assert answer.status == 200, answer.read()
            yield _news(answer)
        finally:
            answer.close()
            connection.close()


def _news(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    while line := answer.readline():
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


@contextmanager
def serving(url: str, *, token: str | None = None, allows: bool = False) -> Iterator[Site]:
    """A dashboard on a broker."""
    observer = Observer(load_settings(url=url))
    observer.start()
    guards = Guards(token, "tester")
    try:
        with listen("127.0.0.1", 0) as listener:
            server = Server(make_app(observer, guards, allows=allows), observer)
            join = in_thread(server.run, [listener])
            site = Site(observer, listener.getsockname()[1])
            if token is not None:
                site.headers["Authorization"] = f"Bearer {token}"
            try:
                until(lambda: server.started, "the server")
                yield site
            finally:
                server.should_exit = True
                join()
    finally:
        observer.stop()
