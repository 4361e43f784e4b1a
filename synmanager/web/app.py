"""Which path is what."""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from importlib.resources import files
from importlib.util import find_spec
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from synmanager import __version__
from synmanager.errors import SynmanagerError
from synmanager.text import shown
from synmanager.web.actions import Actions, Refused
from synmanager.web.gate import (
    COOKIE,
    Gate,
    Guards,
    Visitor,
    form_of,
    is_own_origin,
    is_secure,
    wrong_token,
)
from synmanager.web.observer import Observer
from synmanager.web.pages import Pages
from synmanager.web.parts import Page, Sent, environment

__all__ = ["TICK", "make_app"]

#: Seconds between two looks for news, and after which a page that shows no news is made anew:
#: what was delayed becomes due without anybody saying so.
TICK, _STALE = 0.5, 5.0

#: Seconds after which a silent stream says that it is there.
_STILL_HERE = 15.0

#: Browsers that watch at the same time, and pages that are kept for them.
_MOST_STREAMS, _MOST_PAGES = 200, 64

_STATIC = {"style.css": "text/css", "live.js": "text/javascript", "icon.svg": "image/svg+xml"}

#: Fields of a page's address.
_MOST_FIELDS = 20

#: What a form says of which jobs are meant.
_ABOUT = ("phase", "id", "name", "queue", "cause")

#: How a visitor without a name is called, and characters of a name.
_NOBODY, _LONGEST_NAME = "somebody", 60


def make_app(observer: Observer, guards: Guards, *, allows: bool) -> Gate:
    """The dashboard as an ASGI application.

    Args:
        observer: started, and stopped by whoever made it.
        allows: actions are offered; else no path changes anything.
    """
    site = _Site(observer, guards, allows=allows)
    routes: list[BaseRoute] = [
        *(Route(path, site.page, methods=["GET"]) for path in site.pages.by_path),
        Route("/live", site.live, methods=["GET"]),
        Route("/static/{name:path}", site.static, methods=["GET"]),
        Route("/login", site.login, methods=["GET"]),
        Route("/login", site.log_in, methods=["POST"]),
        Route("/logout", site.log_out, methods=["POST"]),
    ]
    if find_spec("prometheus_client") is not None:
        routes.append(Route("/metrics", site.metrics, methods=["GET"]))
    if allows:
        routes += [
            Route("/do/{name}", site.ask, methods=["GET"]),
            Route("/do/{name}", site.act, methods=["POST"]),
        ]
    handlers: dict[Any, Any] = {404: site.missing, 500: site.failed}
    # Around all of it, so that an error's page has its headers as well.
    return Gate(Starlette(routes=routes, exception_handlers=handlers), guards)


class _Site:
    def __init__(self, observer: Observer, guards: Guards, *, allows: bool) -> None:
        self._observer = observer
        self._guards = guards
        folder = files("synmanager.web") / "static"
        self._static = {name: (folder / name).read_bytes() for name in _STATIC}
        mark = sha256(b"".join(self._static.values())).hexdigest()[:12]
        self._templates = environment(
            {
                "version": __version__,
                "broker": shown(observer.settings.address.safe_url),
                "mark": mark,
                "allows": allows,
            }
        )
        self.pages = Pages(observer, self._templates, allows=allows)
        self._actions = Actions(observer, self.pages.letters)
        self._made: OrderedDict[tuple[str, str], _Made] = OrderedDict()
        self._streams = 0

    async def page(self, request: Request) -> Response:
        """Any of the pages, in full."""
        page = await self._page(request.scope["path"], _query(request))
        return await self._answer(request, page)

    async def live(self, request: Request) -> Response:
        """What is new on a page, for as long as somebody looks."""
        try:
            parts = urlsplit(_fields(_query(request)).get("of", ""))
        except ValueError:
            return PlainTextResponse("no address", 400)
        if parts.path not in self.pages.by_path or parts.netloc or parts.scheme:
            return PlainTextResponse("no such page", 404)
        _fields(parts.query)
        if request.method == "HEAD":
            return Response(media_type=_Stream.media_type)
        if self._streams >= _MOST_STREAMS:
            return PlainTextResponse("too many watch already", 503, {"retry-after": "30"})
        self._streams += 1
        return _Stream(self._news(request, parts.path, parts.query), self._watched)

    def _watched(self) -> None:
        self._streams -= 1

    async def _news(self, request: Request, path: str, query: str) -> AsyncIterator[str]:
        """Twice a second at most, however much happens; for as long as the visitor may have it."""
        sent = Sent()
        version, made_at = -1, 0.0
        said_at = time.monotonic()
        yield "retry: 2000\n\n"
        while not self._observer.is_stopping and self._guards.visitor(request) is not None:
            now = time.monotonic()
            if self._observer.version != version or now - made_at >= _STALE:
                version, made_at = self._observer.version, now
                news = sent.news(await self._page(path, query))
                if self._guards.visitor(request) is None:  # has gone while it was made
                    return
                if news:
                    said_at = now
                    yield f"data: {json.dumps({'now': time.time(), **news})}\n\n"
            if now - said_at >= _STILL_HERE:
                said_at = now
                yield ": still here\n\n"
            await asyncio.sleep(TICK)

    async def metrics(self, request: Request) -> Response:
        """For Prometheus, where its client is installed."""
        from synmanager.metrics import written

        text, kind = await run_in_threadpool(written, self._observer)
        return Response(text, headers={"content-type": kind})

    async def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _STATIC:
            return PlainTextResponse("not found", 404)
        headers = {"cache-control": "private, max-age=86400"}
        return Response(self._static[name], media_type=_STATIC[name], headers=headers)

    async def login(self, request: Request) -> Response:
        return self._login_page("", 200)

    async def log_in(self, request: Request) -> Response:
        """Give a browser a session for the token."""
        form = await form_of(request)
        if form is None or not is_own_origin(request):
            return PlainTextResponse("no form of ours", 403)
        if not self._guards.is_token(form.get("token", "")):
            await wrong_token()
            return self._login_page("That is not the token.", 401)
        name = shown(form.get("name", "").strip() or _NOBODY, _LONGEST_NAME)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            COOKIE,
            self._guards.let_in(name),
            httponly=True,
            samesite="strict",
            secure=is_secure(request),
        )
        return answer

    async def log_out(self, request: Request) -> Response:
        form = await form_of(request)
        visitor: Visitor = request.state.visitor
        if form is None or not self._guards.is_own_form(request, visitor, form.get("form", "")):
            return PlainTextResponse("no form of ours", 403)
        self._guards.let_out(visitor.session)
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=is_secure(request))
        return answer

    async def ask(self, request: Request) -> Response:
        """Say how many jobs an action touches, and ask."""
        fields = _fields(_query(request))
        # What is to be done is the form's to say: no link fills in a job that somebody then saves.
        about = {name: fields[name] for name in (*_ABOUT, "back") if name in fields}
        return await self._asked(request, about, "")

    async def act(self, request: Request) -> Response:
        """Do it, if it still touches as many jobs as was said."""
        form = await form_of(request)
        visitor: Visitor = request.state.visitor
        if form is None or not self._guards.is_own_form(request, visitor, form.get("form", "")):
            return PlainTextResponse("no form of ours, or one of an earlier run", 403)
        name = request.path_params["name"]
        if name not in self._actions.by_name:
            return await self.missing(request, None)
        try:
            plan = await run_in_threadpool(self._actions.plan, name, form)
            if form.get("number") != str(plan.number):
                return await self._asked(
                    request, form, f"This touches {plan.number:,} by now: have a look."
                )
            said = await run_in_threadpool(self._actions.do, name, form, visitor.name)
        except Refused as refusal:
            return await self._asked(request, form, f"Not done: {refusal}.")
        except SynmanagerError as error:
            return await self._asked(request, form, f"Not done: {shown(error, 500)}.")
        self._made.clear()
        back = _place(form.get("back", "/"))
        return await self._say("Done", said, 200, back)

    async def _asked(self, request: Request, form: dict[str, str], trouble: str) -> Response:
        name = request.path_params["name"]
        if name not in self._actions.by_name:
            return await self.missing(request, None)
        back = _place(form.get("back", "") or request.headers.get("referer", "/"))
        try:
            plan = await run_in_threadpool(self._actions.plan, name, form)
        except Refused as refusal:
            return await self._say("Nothing to do", f"{trouble or str(refusal) + '.'}", 409, back)
        except SynmanagerError as error:
            return await self._say("The broker does not answer", shown(error, 500), 503, back)
        about = {key: form[key] for key in _ABOUT if key in form}
        page = Page(
            "confirm.html",
            plan.button,
            {"plan": plan, "about": about, "action": name, "trouble": trouble, "back": back},
            status=409 if trouble else 200,
        )
        page = await run_in_threadpool(self.pages.framed, page, "")
        return await self._answer(request, page)

    async def missing(self, request: Request, error: Exception | None) -> Response:
        return await self._say("No such page", "There is nothing at this address.", 404, "/")

    async def failed(self, request: Request, error: Exception) -> Response:
        return PlainTextResponse("the dashboard has stumbled; its log says over what", 500)

    async def _say(self, title: str, text: str, status: int, back: str) -> Response:
        page = self.pages.message(title, text, status)
        page.context["back"] = back
        page = await run_in_threadpool(self.pages.framed, page, "")
        return await self._answer(None, page)

    async def _page(self, path: str, query: str) -> Page:
        """A page; one that was made a moment ago, for another browser, will do."""
        made = self._made.get((path, query))
        now = time.monotonic()
        if made is None or (
            now - made.at >= TICK
            and (made.version != self._observer.version or now - made.at >= _STALE)
        ):
            fields = _fields(query)
            work = asyncio.ensure_future(run_in_threadpool(self.pages.at, path, fields))
            work.add_done_callback(lambda done: done.cancelled() or done.exception())
            made = self._made[path, query] = _Made(work, now, self._observer.version)
            self._made.move_to_end((path, query))
            while len(self._made) > _MOST_PAGES:
                self._made.popitem(last=False)
        page = await asyncio.shield(made.work)
        assert page is not None, path
        return page

    async def _answer(self, request: Request | None, page: Page) -> Response:
        visitor: Visitor | None = getattr(request.state, "visitor", None) if request else None
        more = {
            "now": time.time(),
            "form": self._guards.form_token(visitor) if visitor else "",
            "can_leave": bool(visitor and visitor.session),
            "live": _live(request) if request and page.status == 200 else "",
        }
        html = await run_in_threadpool(self.pages.rendered, page, **more)
        return HTMLResponse(html.encode("utf-8", "replace"), page.status)

    def _login_page(self, trouble: str, status: int) -> Response:
        html = self._templates.get_template("login.html").render(trouble=trouble)
        return HTMLResponse(html, status)


class _Stream(StreamingResponse):
    """News for as long as somebody looks.

    Args:
        over: called when it has ended, also if nobody has heard any of it.
    """

    media_type = "text/event-stream"

    def __init__(self, news: AsyncIterator[str], over: Callable[[], None]) -> None:
        super().__init__(news, headers={"x-accel-buffering": "no"})
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._over()


class _Made:
    """A page that is there, or under way."""

    def __init__(self, work: asyncio.Future[Page | None], at: float, version: int) -> None:
        self.work, self.at, self.version = work, at, version


def _query(request: Request) -> str:
    """What stands behind the question mark, in whatever bytes somebody has written it."""
    query: bytes = request.scope["query_string"]
    return query.decode("utf-8", "replace")


def _fields(query: str) -> dict[str, str]:
    """A query's fields by their names.

    Raises:
        HTTPException: there are more than any page of ours has.
    """
    try:
        return dict(parse_qsl(query, keep_blank_values=True, max_num_fields=_MOST_FIELDS))
    except ValueError:
        raise HTTPException(400, "too many fields") from None


def _live(request: Request) -> str:
    """Where the news of a page come from; "" if it has none."""
    path, query = request.scope["path"], _query(request)
    if path.startswith("/do/"):
        return ""
    return "/live?" + urlencode({"of": f"{path}?{query}" if query else path})


def _place(url: str) -> str:
    """A path of ours to go back to, whatever somebody has made of it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "/"
    path = parts.path if parts.path.startswith("/") else "/"
    if path.startswith(("//", "/do/", "/\\")):
        return "/"
    return f"{path}?{parts.query}" if parts.query else path
