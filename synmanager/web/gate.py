"""Who gets in, and what every answer says to browsers."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from synmanager.checks import is_loopback
from synmanager.errors import ConfigurationError

__all__ = ["COOKIE", "LEAST_TOKEN", "Gate", "Guards", "Visitor", "form_of"]

COOKIE = "synmanager_session"

#: Characters of a token: shorter ones can be guessed.
LEAST_TOKEN = 16

#: Seconds that a login lasts, logins that there are at once, seconds that a wrong token costs.
_SESSION, _MOST_SESSIONS, _WRONG = 12 * 3600.0, 1000, 0.5

#: Bytes of a form.
_LONGEST_FORM = 4 * 1024 * 1024

#: Nothing but what the package brings, and no page of others around ours.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not "no-referrer": a browser would then hide from us where a form comes from.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}

#: What is shown to who is not let in, and below what: it says nothing of the grid.
_OPEN, _OPEN_BELOW = "/login", "/static/"


@dataclass(frozen=True)
class Visitor:
    """Who asks.

    Attributes:
        name: for the journal: the name given at the login, or the user who runs this; and where
            from.
        session: of the browser; "" for a program with a token, and where no login is asked for.
    """

    name: str
    session: str = ""


@dataclass
class Guards:
    """What a dashboard asks of its visitors.

    Args:
        token: None lets in whoever reaches a loopback address.
        user: who runs the dashboard, for whoever needs no login.

    Raises:
        ConfigurationError: the token is too short to be one.
    """

    token: str | None
    user: str
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    _sessions: OrderedDict[str, tuple[float, str]] = field(default_factory=OrderedDict, repr=False)

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < LEAST_TOKEN:
            raise ConfigurationError(
                f"the dashboard's token has {len(self.token)} characters; {LEAST_TOKEN} are the "
                "least: python3 -c 'import secrets; print(secrets.token_urlsafe())'"
            )

    def visitor(self, request: Request) -> Visitor | None:
        """Who it is; None for nobody whom we know."""
        where = request.client.host if request.client else "?"
        if self.token is None:
            return Visitor(f"{self.user}@{where}")
        given = _bearer(request.headers)
        if given is not None:
            return Visitor(f"token@{where}") if self.is_token(given) else None
        session = _cookie(request.headers)
        found = self._sessions.get(_digest(session)) if session else None
        if found is None or found[0] < time.monotonic():
            return None
        return Visitor(f"{found[1]}@{where}", session)

    def is_token(self, given: str) -> bool:
        """Compared in a time that says nothing."""
        return self.token is not None and hmac.compare_digest(_digest(given), _digest(self.token))

    def let_in(self, name: str) -> str:
        """A new session's id."""
        session = secrets.token_urlsafe(32)
        self._sessions[_digest(session)] = (time.monotonic() + _SESSION, name)
        while len(self._sessions) > _MOST_SESSIONS:
            self._sessions.popitem(last=False)
        return session

    def let_out(self, session: str) -> None:
        self._sessions.pop(_digest(session), None)

    def form_token(self, visitor: Visitor) -> str:
        """What a form must bring, which no page of others can know."""
        return hmac.new(self._key, visitor.session.encode(), hashlib.sha256).hexdigest()

    def is_own_form(self, request: Request, visitor: Visitor, given: str) -> bool:
        """Whether a form was made by a page of ours, for this visitor."""
        expected = self.form_token(visitor)
        return is_own_origin(request) and hmac.compare_digest(given.encode(), expected.encode())


def is_own_origin(request: Request) -> bool:
    """Whether the browser, if it says, says that a request comes from a page of ours."""
    origin = request.headers.get("origin")
    try:
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            return False
    except ValueError:
        return False
    return request.headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")


def is_secure(request: Request) -> bool:
    """Whether the browser speaks TLS, to us or to a proxy: if that is made up, a cookie is kept
    from more than it need be."""
    told = request.headers.get("x-forwarded-proto", "").partition(",")[0]
    return "https" in (request.scope["scheme"], told.strip().lower())


class Gate:
    """Around everything: hosts, visitors, headers.

    Puts the visitor into ``scope["state"]["visitor"]``.
    """

    def __init__(self, app: ASGIApp, guards: Guards) -> None:
        self.app = app
        self._guards = guards

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # there is no other protocol here

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        answer = await self._refusal(Request(scope))
        await (answer or self.app)(scope, receive, sending)

    async def _refusal(self, request: Request) -> Response | None:
        """What to say instead of the answer; None for who may have that."""
        guards = self._guards
        # Not that of request.url, into which the header Host goes as well.
        path: str = request.scope["path"]
        if guards.token is None and not _names_loopback(request.headers.get("host", "")):
            # A page of others, whose name was made to mean this machine.
            return PlainTextResponse("this is not the host that you asked for", 421)
        visitor = guards.visitor(request)
        if visitor is None:
            if path == _OPEN or path.startswith(_OPEN_BELOW):
                return None
            if _bearer(request.headers) is not None:
                await asyncio.sleep(_WRONG)
                return PlainTextResponse("wrong token", 401, {"www-authenticate": "Bearer"})
            if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
                return RedirectResponse("/login", 303)
            return PlainTextResponse("a token is needed", 401, {"www-authenticate": "Bearer"})
        request.state.visitor = visitor
        return None


async def wrong_token() -> None:
    """Let who guesses wait."""
    await asyncio.sleep(_WRONG)


async def form_of(request: Request) -> dict[str, str] | None:
    """The fields of a form; None if it is none, too long, or cut off."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        return None
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > _LONGEST_FORM:
                return None
        text = body.decode("ascii")
        return dict(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=50))
    except (ValueError, ClientDisconnect):
        return None


def _names_loopback(host: str) -> bool:
    """Whether a ``Host`` header names this machine by a name that no stranger can own."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def _bearer(headers: Headers) -> str | None:
    """The token that a program brings; None if it brings none: other schemes are a proxy's."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    return given.strip() if kind.lower() == "bearer" else None


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
