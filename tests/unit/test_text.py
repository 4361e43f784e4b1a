"""Text of strangers does nothing to a log or a terminal."""

from __future__ import annotations

import signal
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from synmanager.text import last_lines, quoted, shown

ANY = st.text(st.characters(), max_size=30)  # surrogates and control characters as well


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain", "plain"),
        ("größe 日本 🐧 'quoted' C:\\new", "größe 日本 🐧 'quoted' C:\\new"),
        ("", ""),
        ("two\nlines\r\n", "two\\nlines\\r\\n"),
        ("\tred \x1b[31m", "\\tred \\x1b[31m"),
        ("\x9b31m", "\\x9b31m"),
        ("\x00\x07\x7f", "\\x00\\x07\\x7f"),
        ("gnp.\u202eexe", "gnp.\\u202eexe"),
        ("\u2028\u2029\u0085", "\\u2028\\u2029\\x85"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        (ValueError("a\nb"), "a\\nb"),
        (None, "None"),
        (b"a\n", "b'a\\n'"),
    ],
)
def test_is_one_line_and_moves_no_cursor(text: object, line: str) -> None:
    assert shown(text) == line


@given(ANY, st.integers(0, 40))
@example("x" * 8 + "\x1b", 10)
@example("abc", 2)
def test_is_printable_bounded_and_whole_where_it_fits(text: str, limit: int) -> None:
    line = shown(text, limit)
    assert line.isprintable()
    assert len(line) <= limit
    line.encode()
    whole = shown(text, 1000)
    assert line == whole if len(whole) <= limit else line.endswith("..."[:limit])


def test_is_cut_without_reading_it_all() -> None:
    assert shown("x" * 20_000_000) == "x" * 197 + "..."
    assert shown("x" * 200) == "x" * 200
    assert shown("\n" * 20_000_000, 10) == "\\n\\n\\n..."


class Text(str):
    """A str with ideas of its own."""

    def __str__(self) -> str:
        return self

    def isprintable(self) -> bool:
        return True

    def __len__(self) -> int:
        raise ZeroDivisionError


def failing(error: BaseException) -> Any:
    class Failing:
        def __str__(self) -> str:
            raise error

    return Failing()


def test_never_raises() -> None:
    assert shown(Text("a\nb")) == "a\\nb"
    for error in (ValueError("planted"), RecursionError(), SystemExit(2), MemoryError()):
        assert shown(failing(error)) == "<Failing that cannot be written>"


def test_lets_ctrl_c_and_the_caller_s_own_handler_pass() -> None:
    with pytest.raises(KeyboardInterrupt):
        shown(failing(KeyboardInterrupt()))

    def leave(number: int, frame: object) -> None:
        sys.exit(3)

    class Interrupted:
        def __str__(self) -> str:
            signal.raise_signal(signal.SIGUSR1)
            return "never"

    before = signal.signal(signal.SIGUSR1, leave)
    try:
        with pytest.raises(SystemExit):
            shown(Interrupted())
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_what_was_given_is_quoted_on_one_short_line() -> None:
    class Awkward:
        def __repr__(self) -> str:
            raise SystemExit(2)

    assert quoted("a\x1b\n") == r"'a\x1b\n'"
    assert quoted(["\u202e" * 1000], 20) == r"['\u202e\u202e\u2..."
    assert quoted(Awkward()) == "<Awkward that cannot be written>"


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("one\ntwo\nthree", "one\ntwo\nthree"),
        ("and one\ntwo\nthree", "...two\nthree"),
        ("x\none two three four", "...three four"),
        ("", ""),
    ],
)
def test_the_last_lines(text: str, end: str) -> None:
    assert last_lines(text, 13) == end
