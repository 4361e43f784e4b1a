"""Who gets into a dashboard, and what may come out of it."""

from __future__ import annotations

import asyncio
import http.client
import socket
from collections.abc import Iterator
from contextlib import suppress
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode

import pytest
from dashboards import Site, serving
from grid import Grid
from starlette.requests import Request
from starlette.types import Message
from threads import WAIT

from synmanager import Reject, Worker
from synmanager.backends.registry import create_backend
from synmanager.cli import main
from synmanager.errors import ConfigurationError
from synmanager.journal import recorder
from synmanager.settings import load_settings
from synmanager.web import app as web_app
from synmanager.web import gate, serve
from synmanager.web.actions import Actions
from synmanager.web.app import make_app
from synmanager.web.dead import Letters
from synmanager.web.gate import Guards, form_of
from synmanager.web.serve import check_reach

TOKEN = "0123456789abcdef-token"

PATHS = (
    "/", "/waiting", "/sweeps", "/dead", "/workers", "/broker", "/job?phase=train&id=bad",
    "/sweep?name=nobody", "/letter?queue=train&id=bad", "/dead?queue=train&reason=poison",
    "/static/style.css", "/static/live.js", "/metrics", "/nothing", "/do/purge?queue=train&id=bad",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNMANAGER_JOURNAL", "on")


@pytest.fixture
def broker(grid: Grid) -> Grid:
    """A dead letter, and a job that waits."""

    def work(**job: Any) -> None:
        raise Reject("poison")

    grid.producer().submit({"run": 1}, job_id="bad")
    Worker({"train": work}, url=grid.url).run(burst=True)
    grid.producer().submit({"run": 2}, job_id="waits")
    recorder.flush_all(5)
    return grid


@pytest.fixture
def site(broker: Grid) -> Iterator[Site]:
    with serving(broker.url) as made:
        made.until_caught_up()
        yield made


@pytest.fixture
def guarded(broker: Grid) -> Iterator[Site]:
    with serving(broker.url, token=TOKEN, allows=True) as made:
        made.until_caught_up()
        made.headers.clear()
        yield made


def all_there_is(url: str) -> list[object]:
    """What a broker holds, and what was asked of it."""
    backend = create_backend(load_settings(url=url).address)
    backend.open()
    try:
        logs = [
            [entry.data for entry in backend.replay(log, limit=100_000)]
            for log in ("events", "marks", "checkpoints", "sweeps")
        ]
        letters = [(each.message, each.reason) for each in backend.dead_letters("train", 100)]
        return [backend.count("train"), letters, *logs]
    finally:
        backend.close()


def log_in(site: Site, **headers: str) -> str:
    """Go on with a session and no token; returns what the cookie came with."""
    site.headers.clear()
    told = site.post("/login", {"token": TOKEN, "name": "Ada"}, **headers).headers["set-cookie"]
    site.cookie = told.partition(";")[0]
    return told


def connected(site: Site, said: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", site.port), timeout=WAIT)
    with suppress(ConnectionError):  # it may have been ended already
        made.sendall(said)
    return made


class Inline(HTMLParser):
    """Collects what a strict policy forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        if tag == "style" or (tag == "script" and "src" not in named):
            self.found.append(tag)
        self.found += [name for name in named if name == "style" or name.startswith("on")]
        for name in ("src", "href", "action"):
            link = named.get(name) or "/"
            if not link.startswith(("/", "#")) or link.startswith("//"):
                self.found.append(link)


def test_beyond_loopback_a_token_is_required() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "mq.example", ""):
        with pytest.raises(ConfigurationError, match="token"):
            check_reach(host, Guards(None, "me"))
        check_reach(host, Guards(TOKEN, "me"))
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        check_reach(host, Guards(None, "me"))


def test_the_command_refuses_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", "--host", "0.0.0.0", "--backend", "memory"]) == 1
    assert "--token-file" in capsys.readouterr().err


def test_a_token_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="16"):
        Guards("hunter2", "me")


def test_every_answer_has_the_headers_and_nothing_inline(site: Site) -> None:
    for path in PATHS:
        answer = site.ask(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy, path
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        if answer.headers["content-type"].startswith("text/html"):
            page = Inline()
            page.feed(answer.text)
            assert page.found == [], path
            assert answer.headers["cache-control"] == "no-store"


def test_another_s_name_for_this_machine_is_refused(site: Site) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.", "", "["):
        answer = site.ask("/", Host=host)
        assert answer.status in (400, 421), host
        assert "waits" not in answer.text
    for host in ("127.0.0.1", "localhost:8080", "[::1]:8080"):
        assert site.ask("/", Host=host).status == 200, host


def test_without_the_token_nothing_is_told(guarded: Site) -> None:
    for path in (*PATHS, "/live?of=/"):
        answer = guarded.ask(path)
        assert "waits" not in answer.text
        if not path.startswith("/static"):
            assert (answer.status, answer.headers.get("location")) == (303, "/login")
            assert guarded.ask(path, Accept="application/json").status == 401
            assert guarded.ask(f"/?token={TOKEN}").status == 303
    assert guarded.ask("/", Authorization="Bearer nearly").status == 401
    assert guarded.ask("/", Authorization="Basic YTpi").headers["location"] == "/login"
    assert guarded.ask("/", Authorization=f"Bearer {TOKEN}").status == 200
    assert guarded.ask("/", Cookie="synmanager_session=made-up").status == 303
    assert guarded.post("/do/purge", {"queue": "train", "id": "bad"}).status == 401


def test_a_browser_logs_in_and_out(guarded: Site) -> None:
    assert guarded.get("/login").status == 200
    wrong = guarded.post("/login", {"token": "not this one at all"})
    assert (wrong.status, "set-cookie" in wrong.headers) == (401, False)
    strange = guarded.post("/login", {"token": TOKEN}, Origin="http://evil.example")
    assert (strange.status, "set-cookie" in strange.headers) == (403, False)
    assert guarded.post("/login", {"token": TOKEN}, Origin="http://[").status == 403

    answer = guarded.post("/login", {"token": TOKEN, "name": "Ada\x1b[2J"})
    cookie = answer.headers["set-cookie"]
    assert answer.status == 303
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert TOKEN not in cookie
    guarded.cookie = cookie.partition(";")[0]
    page = guarded.get("/")
    assert page.status == 200
    assert guarded.post("/logout", {"form": page.hidden("form")}).status == 303
    assert guarded.get("/").status == 303


def test_read_only_means_that_no_path_changes_anything(broker: Grid) -> None:
    with serving(broker.url, token=TOKEN) as site:
        site.until_caught_up()
        log_in(site)
        observer = site.observer

        def paths(*, allows: bool) -> set[str]:
            app = make_app(observer, Guards(None, "me"), allows=allows)
            return {str(getattr(route, "path", route)) for route in app.app.routes}  # type: ignore[attr-defined]

        assert {"/", "/live", "/login", "/logout", "/static/{name:path}"} <= paths(allows=False)
        assert not any(path.startswith("/do") for path in paths(allows=False))
        names = Actions(observer, Letters(observer)).by_name
        tried = {path.replace("{name}", name) for path in paths(allows=True) for name in names}
        assert {"/do/purge", "/do/retry-sweep"} <= tried
        before = all_there_is(broker.url)
        about = {
            "phase": "train",
            "queue": "train",
            "number": "1",
            "form": site.get("/").hidden("form"),
        }
        for path in sorted(tried - {"/logout"}):
            for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"):
                if (path, method) != ("/live", "GET"):
                    assert site.ask(path, method).status < 500
            for job in ("bad", "waits"):
                answer = site.post(path, {**about, "id": job, "name": "search", "job": "{}"})
                assert answer.status in (401, 403, 404, 405), path
        assert all_there_is(broker.url) == before
        assert site.post("/logout", about).status == 303, "the form was not a valid one"


def test_a_forged_form_changes_nothing(guarded: Site, broker: Grid) -> None:
    guarded.headers["Authorization"] = f"Bearer {TOKEN}"
    about = {"queue": "train", "id": "bad"}
    asked = guarded.get("/do/purge", **about)
    assert "Remove 1 dead letter" in asked.text
    good = {**about, "form": asked.hidden("form"), "number": "1"}
    before = all_there_is(broker.url)
    for fields in (about, {**good, "form": ""}, {**good, "form": "0" * 64}):
        assert guarded.post("/do/purge", fields).status == 403
    assert guarded.post("/do/purge", good, Origin="http://evil.example").status == 403
    assert guarded.post("/do/purge", good, Sec_Fetch_Site="cross-site").status == 403
    assert guarded.ask("/do/purge", "POST", "{}", Content_Type="application/json").status == 403
    assert guarded.post("/do/purge", {**good, "number": "7"}).status == 409
    assert guarded.post("/do/everything", good).status == 404
    assert all_there_is(broker.url) == before
    assert guarded.post("/do/purge", good).status == 200
    assert broker.dead() == []


def test_another_session_s_form_is_a_forged_one(guarded: Site, broker: Grid) -> None:
    log_in(guarded)
    about = {"queue": "train", "id": "bad"}
    good = {**about, "form": guarded.get("/do/purge", **about).hidden("form"), "number": "1"}
    mine = guarded.cookie
    log_in(guarded)
    assert guarded.post("/do/purge", good).status == 403
    assert guarded.post("/logout", good).status == 403
    guarded.cookie = mine
    for origin in ("null", f"https://127.0.0.1:{guarded.port}.evil.example", "http://127.0.0.1:1"):
        assert guarded.post("/do/purge", good, Origin=origin).status == 403, origin
    assert len(broker.dead()) == 1
    assert guarded.post("/do/purge", good).status == 200


def test_a_form_that_is_too_long_is_refused(guarded: Site) -> None:
    guarded.headers["Authorization"] = f"Bearer {TOKEN}"
    assert guarded.post("/do/edit", {"job": "x" * 5_000_000}).status == 403


def test_what_is_open_to_strangers_ends_where_it_ends(guarded: Site) -> None:
    for path in ("/loginx", "/login/", "/login/foo", "/static", "/Login", "//login", "/nothing"):
        assert guarded.ask(path).headers.get("location") == "/login", path
        assert guarded.ask(path, Accept="*/*").status == 401, path
    for path in ("/static/", "/static/nothing", "/static/a/b", "/static/../broker", "/static//"):
        answer = guarded.ask(path)
        assert (answer.status, answer.text) == (404, "not found"), path
    for host in ("x/login?", "x/static/", "[", "x:y", ""):
        assert guarded.ask("/broker", Host=host).headers.get("location") == "/login", host
        assert guarded.ask("/static/style.css", Host=host).status == 200, host


def test_behind_a_proxy_with_tls_the_cookie_is_for_tls(guarded: Site) -> None:
    assert "secure" not in log_in(guarded).lower()
    told = log_in(guarded, X_Forwarded_Proto="https, http", Authorization="Basic YTpi")
    assert "; secure" in told.lower()
    assert guarded.ask("/", Authorization="Basic YTpi").status == 200


def test_what_cannot_be_read_is_the_asker_s_mistake(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_WRONG", 0.0)
    many = urlencode({f"field{number}": "" for number in range(30)})
    for path in (f"/?{many}", f"/live?{many}", f"/sweep?{many}", "/live?of=http://[",
                 f"/live?{urlencode({'of': f'/?{many}'})}"):  # fmt: skip
        assert site.ask(path).status == 400, path
    for path in ("/?a=%ff%00", "/%ff", "/job?id=%ed%a0%80", "/live?of=%ed%a0%80", "/?&&==&=%"):
        assert site.ask(path).status in (200, 404), path
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    for name in ("Cookie", "Origin", "Referer", "Authorization", "Content_Type", "Accept"):
        for text in ("http://[", "\xff", "=;=\x7f", "Bearer", "a" * 10_000):
            assert site.ask("/", **{name: text}).status == 200, (name, text)
            answer = site.ask("/login", "POST", "token=x", **{**form, name: text})
            assert answer.status in (401, 403), (name, text)


def test_actions_read_no_more_fields_than_pages(guarded: Site) -> None:
    guarded.headers["Authorization"] = f"Bearer {TOKEN}"
    many = {f"field{number}": "" for number in range(30)}
    assert guarded.get("/do/purge", queue="train", id="bad", **many).status == 400
    assert guarded.get("/do/purge", queue="train", id="bad").status == 200
    assert guarded.get("/do/purge", queue="train", id="bad", back="//[").status == 200


def test_a_form_that_is_cut_off_is_none() -> None:
    async def gone() -> Message:
        return {"type": "http.disconnect"}

    headers = [(b"content-type", b"application/x-www-form-urlencoded")]
    request = Request({"type": "http", "method": "POST", "headers": headers}, gone)
    assert asyncio.run(form_of(request)) is None


def test_who_does_not_ask_in_whole_is_not_waited_for(
    broker: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = b"GET /login HTTP/1.1\r\nHost: localhost\r\n"
    with serving(broker.url) as site, site.watching("/") as news:
        next(news)
        monkeypatch.setattr(serve, "_WHOLE", 0.5)
        silent = [
            connected(site, said)
            for said in (
                b"", b"G", head, head + b"\r\n" + head,
                b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nContent-Type: "
                b"application/x-www-form-urlencoded\r\n\r\ntok",
            )
        ]  # fmt: skip
        for each in silent:
            with each:
                while hears(each):
                    pass
        site.observer.version += 1
        broker.producer().submit({"run": 3})
        recorder.flush_all(5)
        assert next(news), "who has asked may listen"


def hears(connection: socket.socket) -> bool:
    """Read on: False at the end, which may be an abrupt one."""
    try:
        return bool(connection.recv(4096))
    except ConnectionError:
        return False


def test_news_end_with_the_session(guarded: Site) -> None:
    log_in(guarded)
    guarded.headers["Cookie"] = guarded.cookie
    with guarded.watching("/") as news:
        next(news)
        assert guarded.post("/logout", {"form": guarded.get("/").hidden("form")}).status == 303
        guarded.observer.version += 1
        for _ in news:
            pass


def test_the_head_of_news_is_all_of_it(site: Site) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=WAIT)
    try:
        for method, path in (("HEAD", "/live?of=/"), ("GET", "/static/icon.svg")):
            connection.request(method, path)
            with connection.getresponse() as answer:
                assert answer.status == 200
                answer.read()
    finally:
        connection.close()


def test_no_more_watch_at_once_than_may(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_app, "_MOST_STREAMS", 3)
    app = make_app(site.observer, Guards(None, "me"), allows=False)

    async def burst() -> list[int]:
        """The statuses of requests that come in one turn of the loop, and go when all have one."""
        told: list[int] = []
        all_told = asyncio.Event()

        async def receive() -> Message:
            await all_told.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                told.append(message["status"])
                if len(told) == 12:
                    all_told.set()

        about = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "path": "/live",
                 "query_string": b"of=/", "headers": [(b"host", b"localhost")], "method": "GET",
                 "scheme": "http"}  # fmt: skip
        await asyncio.gather(*(app(dict(about), receive, send) for _ in range(12)))
        return sorted(told)

    async def bursts() -> None:
        for _ in range(2):  # who has gone makes room
            assert await asyncio.wait_for(burst(), WAIT) == [200] * 3 + [503] * 9

    asyncio.run(bursts())
