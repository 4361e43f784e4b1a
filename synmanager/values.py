"""The values that JSON does not know: which form each is given, and which are refused.

``docs/values.md`` is the page on it. Nothing is imported to recognise a value: it is taken for
what it offers, so that numpy's, torch's and pandas' are all the same here. JSON's own types never
come this way, and cost nothing.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from itertools import islice
from typing import Any
from weakref import WeakSet

from synmanager.interrupts import is_from_handler
from synmanager.text import quoted, shown

__all__ = ["Refused", "Writer", "keys_fit", "place"]

logger = logging.getLogger(__name__)

#: Types whose ``str()`` is all that they are, by module: one that is not loaded made no value.
_TEXTS = {
    "datetime": ("date", "time", "timedelta"),
    "decimal": ("Decimal",),
    "enum": ("Enum",),
    "fractions": ("Fraction",),
    "pathlib": ("PurePath",),
    "uuid": ("UUID",),
}

_BYTES = (bytes, bytearray, memoryview)
_KEYS = (str, int, float, type(None))

_LEAVES = (str, int, float, bytes, type(None))
_CONTAINERS = (dict, list, tuple)

#: Values other than JSON's own that are looked into, to find a place: each may give rise to more.
_MOST_LOOKED_INTO = 1000

#: What a value takes in JSON at the very least: ``0, `` and ``"k": 0``.
_LEAST_OF_A_LIST, _LEAST_OF_AN_OBJECT = 3, 6

#: No form: JSON's null is one.
_NONE = object()

_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")
_LEFT_OUT = re.compile(r"(?:^|[\s,\[({])\.\.\.?(?:[\s,\])}]|$)")

_HINTS: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda value: isinstance(value, _BYTES), "; send it as text, for instance in base 64"),
    (lambda value: isinstance(value, set | frozenset), "; send a list"),
    (lambda value: is_dataclass(value), "; send dataclasses.asdict() of it"),
)

_warned: WeakSet[type] = WeakSet()  # a class made for one job is not kept for it


class Refused(Exception):
    """A value that cannot be written, and why: ``is a function, ...``."""

    def __init__(self, value: object, why: str) -> None:
        super().__init__(why)
        self.value = value


class Writer:
    """The ``default`` of a JSON encoder, for one job.

    Args:
        job: what is being written; a warning says where in it a value is.
        max_bytes: no value that must become longer than this, alone or with those before it, is
            turned into lists and dicts at all.
        strict: refuse what has no form; otherwise it is written as its ``str()``, as in 0.1.0.

    Raises:
        Refused: of a call.
        RecursionError: values that give rise to others, without end.
    """

    def __init__(self, job: Mapping[str, Any], max_bytes: int, *, strict: bool) -> None:
        self._job = job
        self._max_bytes = self._room = max_bytes
        self._strict = strict

    def __call__(self, value: Any) -> Any:
        try:
            form = self._form(value)
        except (Refused, RecursionError):
            raise
        except BaseException as error:
            _let_pass(error)
            if self._strict:
                raise Refused(value, _failed(value, error)) from error
            form = _NONE
        if form is not _NONE:
            return form
        if self._strict:
            raise Refused(value, f"is {_a(value)}, which JSON has no form for{_hint(value)}")
        return self._text(value)

    def _form(self, value: Any) -> Any:
        kind = type(value)
        if isinstance(value, _texts()):
            return str(value)
        if isinstance(value, _BYTES):  # of which a memoryview would offer numbers
            return _NONE
        if isinstance(value, Mapping):
            entries = dict(islice(value.items(), self._room // _LEAST_OF_AN_OBJECT + 1))
            self._spend(value, len(entries), _LEAST_OF_AN_OBJECT)
            if not self._strict and not keys_fit(entries):
                return _NONE  # 0.1.0 took it
            return entries
        # Looked up on the type, as a class or a mock would offer anything.
        if hasattr(kind, "tolist"):
            self._spend(value, _count(value), _LEAST_OF_A_LIST)
            if getattr(getattr(value, "dtype", None), "kind", "") in ("M", "m"):
                # Dates and durations, whose tolist() may give bare nanoseconds.
                return str(value) if value.shape == () else list(value)
            form = value.tolist()
            return _NONE if type(form) is kind else form
        if hasattr(kind, "item"):
            form = value.item()
            return form if isinstance(form, _KEYS) else _NONE
        if self._strict and hasattr(kind, "__fspath__"):
            form = os.fspath(value)
            return form if isinstance(form, str) else _NONE
        if self._strict and isinstance(value, Sequence):
            self._spend(value, len(value), _LEAST_OF_A_LIST)
            return list(islice(value, len(value)))
        return _NONE

    def _spend(self, value: object, count: int, least: int) -> None:
        self._room -= count * least
        if self._room < 0:
            raise Refused(
                value,
                f"is {_a(value)} of {count:,} values, over the limit of {self._max_bytes:,} bytes; "
                "store the data elsewhere and send its address",
            )

    def _text(self, value: Any) -> str:
        try:
            text = str(value)
        except RecursionError:
            raise
        except BaseException as error:
            _let_pass(error)
            raise Refused(value, _failed(value, error)) from error
        if _loses(value, text) and type(value) not in _warned:
            _warned.add(type(value))
            where = place("job", self._job, lambda found: found is value)
            logger.warning(
                "%s is %s and is written as the text %s, as in 0.1.0: what it holds does not "
                "travel. submit() refuses such a value. Said once for each type",
                where or "a value of a job",
                _a(value),
                shown(text, 100),
            )
        return text


def place(name: str, job: Mapping[str, Any], found: Callable[[Any], bool]) -> str:
    """Where in a job the first value of a kind is: ``job['model']['weights'][3]``.

    Args:
        name: what the job itself is called.

    Returns:
        "" if it is not found, which may be as the values are others each time they are looked at.
    """
    keys: list[Any] = []
    seen: dict[int, Any] = {}  # with what is seen, so that no id is used twice
    levels: list[Iterator[tuple[Any, Any]]] = [iter([(None, job)])]
    foreign = 0
    try:
        while levels and foreign < _MOST_LOOKED_INTO:
            for key, value in levels[-1]:
                if found(value):
                    return shown(name + "".join(f"[{quoted(key)}]" for key in (*keys, key)[1:]))
                if not isinstance(value, _LEAVES) and id(value) not in seen and len(keys) < 1000:
                    seen[id(value)] = value
                    foreign += not isinstance(value, _CONTAINERS)
                    levels.append(iter(_children(value)))
                    keys.append(key)
                    break
            else:
                levels.pop()
                del keys[-1:]
    except Exception as error:
        _let_pass(error)
    return ""


def keys_fit(entries: Mapping[Any, Any]) -> bool:
    """Whether JSON can write all of these keys, and put them in order."""
    try:
        sorted(entries)
    except TypeError:
        return False
    return all(isinstance(key, _KEYS) for key in entries)


def _children(value: Any) -> Iterable[tuple[Any, Any]]:
    form = value
    if not isinstance(value, _CONTAINERS):
        try:
            form = Writer({}, 1 << 20, strict=True)(value)
        except Refused:
            return ()
    if isinstance(form, dict):
        return form.items()
    return enumerate(form) if isinstance(form, list | tuple) else ()


def _texts() -> tuple[type, ...]:
    return tuple(
        getattr(sys.modules[module], name)
        for module, names in _TEXTS.items()
        if module in sys.modules
        for name in names
    )


def _count(value: Any) -> int:
    """How many values ``tolist()`` would make, or more lists than that on the way."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and all(isinstance(length, int) for length in shape):
        return max((math.prod(shape[:end]) for end in range(1, len(shape) + 1)), default=1)
    return len(value) if hasattr(type(value), "__len__") else 1


def _loses(value: Any, text: str) -> bool:
    """Whether a text is an address, or leaves out a part."""
    if isinstance(value, bytes | bytearray) or hasattr(type(value), "__fspath__"):
        return False
    write: Any = type(value).__str__
    bare = write is object.__str__ and text.startswith("<") and text.endswith(">")
    return bare or bool(_ADDRESS.search(text) or _LEFT_OUT.search(text))


def _let_pass(error: BaseException) -> None:
    """Raise what interrupted us again, as a value may do anything but is not the user."""
    if isinstance(error, KeyboardInterrupt) or is_from_handler(error):
        raise error


def _a(value: object) -> str:
    name = shown(type(value).__name__, 100)
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _hint(value: object) -> str:
    return next((hint for applies, hint in _HINTS if applies(value)), "")


def _failed(value: object, error: BaseException) -> str:
    return f"is {_a(value)} that cannot be written: {type(error).__name__}: {shown(error)}"
