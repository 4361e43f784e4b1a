"""A page as named pieces of HTML, and what of them a browser does not have yet."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from synmanager.journal import events
from synmanager.journal.fold import Progress
from synmanager.redact import hidden_figures, hidden_in_text
from synmanager.text import last_lines, shown
from synmanager.words import ago, duration, number
from synmanager.words import moment as on_the_wall

__all__ = ["Page", "Sent", "environment", "key_of", "query_of"]

#: The words of a clock, which the browser's own script keeps going.
_CLOCKS = re.compile(r"(<time data-[^>]*>)[^<]*")

#: Characters of a traceback that secrets are looked for in.
_LONGEST_PROSE = 20_000

#: What an event says of a job, in words, and as the state whose colour it has.
_SAID = {
    "started": "started", "progress": "progress", "checkpoint": "checkpoint", "renewed": "alive",
    "retried": "failed, to retry", "given_back": "given back", "succeeded": "succeeded",
    "died": "gave up", "cancelled": "cancelled", "deleted": "deleted",
    "redrive": "put back", "edit": "changed, put back", "purge_queue": "purged from its queue",
}  # fmt: skip
_COLOUR = {
    "started": "running", "progress": "running", "checkpoint": "running", "renewed": "running",
    "retried": "retrying", "given_back": "queued", "succeeded": "succeeded", "died": "dead",
    "cancelled": "cancelled", "deleted": "cancelled", "redrive": "queued", "edit": "queued",
    "purge_queue": "cancelled",
}  # fmt: skip

#: What is said of an empty list.
_NOTHING = {
    "running": "Nothing runs. If you expected otherwise: producers and workers are seen if "
    "SYNMANAGER_JOURNAL=off is not set for them.",
    "sweeps": "The journal knows no sweep.",
    "letters": "No dead letters.",
}


@dataclass
class Page:
    """What is to be seen at a path.

    Attributes:
        template: its frame, which names the pieces and lists.
        context: for what of the frame does not change.
        pieces: elements by their id.
        lists: of each element that holds a list, the elements in it by their id, in order.
        status: of the answer, by HTTP.
    """

    template: str
    title: str
    context: dict[str, Any] = field(default_factory=dict)
    pieces: dict[str, Markup] = field(default_factory=dict)
    lists: dict[str, dict[str, Markup]] = field(default_factory=dict)
    status: int = 200


class Sent:
    """What a browser has of a page."""

    def __init__(self) -> None:
        self._pieces: dict[str, bytes] = {}
        self._orders: dict[str, list[str]] = {}

    def news(self, page: Page) -> dict[str, Any]:
        """What to send for it to have all of a page; empty if it has."""
        pieces: dict[str, str] = {}
        orders: dict[str, list[str]] = {}
        kept: dict[str, bytes] = {}
        for name, html in _all(page):
            kept[name] = _digest(html)
            if self._pieces.get(name) != kept[name]:
                pieces[name] = html
        for name, rows in page.lists.items():
            order = list(rows)
            if self._orders.get(name) != order:
                orders[name] = self._orders[name] = order
        self._pieces = kept
        found: dict[str, Any] = {}
        if pieces:
            found["pieces"] = pieces
        if orders:
            found["orders"] = orders
        return found


def _all(page: Page) -> Iterable[tuple[str, Markup]]:
    yield from page.pieces.items()
    for rows in page.lists.values():
        yield from rows.items()


def _digest(html: str) -> bytes:
    return blake2b(_CLOCKS.sub(r"\1", html).encode("utf-8", "replace"), digest_size=16).digest()


def key_of(*names: object) -> str:
    """An element's id for something that strangers have named."""
    said = "\0".join(map(str, names)).encode("utf-8", "surrogatepass")
    return "k" + blake2b(said, digest_size=9).hexdigest()


def query_of(**names: str) -> str:
    """The query of an address; what UTF-8 has no way to write leads nowhere."""
    return urlencode(names, errors="replace")


def _in_query(name: str) -> str:
    return quote(name, safe="", errors="replace")


def environment(settings: Mapping[str, Any]) -> Environment:
    """The templates; everything in them is escaped unless it is a template's own.

    Args:
        settings: what all of them may use.
    """
    made = Environment(
        loader=PackageLoader("synmanager.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        ago=ago, duration=duration, moment=moment, number=number, line=line, prose=prose,
        lines=lines, figure=figure, clock=clock, secretless=hidden_in_text, urlencode=_in_query,
    )  # fmt: skip
    made.globals.update(
        now=time.time, share=share, fields=fields, letter_of=letter_of, said=_SAID,
        colour=_COLOUR, nothing=_NOTHING, **settings,
    )  # fmt: skip
    return made


def line(text: object, limit: int = 120) -> str:
    """What a stranger wrote, on one line."""
    return shown("" if text is None else text, limit)


def prose(text: object, limit: int = 4000) -> str:
    """The end of what a stranger wrote in lines, a traceback, without secrets."""
    return lines(last_lines(hidden_in_text(last_lines(str(text), _LONGEST_PROSE)), limit))


def lines(text: str, limit: int = 20_000) -> str:
    """What a stranger wrote in lines, and has no secrets, such as parameters."""
    return "\n".join(shown(each, 400) for each in text[:limit].splitlines())


def figure(value: object) -> str:
    """A number in as few digits as say something, or a short text."""
    known = events.number(value)
    if known is None:
        return shown(value, 40)
    return f"{known:,}" if isinstance(known, int) and abs(known) < 1e9 else f"{known:.4g}"


def moment(at: float | None) -> str:
    """A time in seconds since the epoch, by the clock on the wall; "" for what can be none."""
    return on_the_wall(events.moment(at))


def clock(at: float) -> str:
    """The time of day."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def share(progress: Progress) -> float:
    """How far a job is, in percent, whatever it says."""
    if progress.done is None or not progress.total:
        return 0.0
    return round(min(max(progress.done / progress.total, 0.0), 1.0) * 100, 1)


def fields(named: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of strangers, without secrets, as far as people read them."""
    if not isinstance(named, Mapping):
        return []
    told = list(hidden_figures(named).items())[:30]
    return [(str(name), figure(value)) for name, value in told]


def letter_of(about: str) -> str:
    """The query that names a job, as one that names its dead letter."""
    return "queue" + about.removeprefix("phase")
