"""Stream entries of this project, of strangers, and damaged ones."""

from __future__ import annotations

import pytest

from synmanager.backends.redis.entries import dead_letter, parse, write
from synmanager.errors import InvalidJob
from synmanager.message import Message, Rank

NAMES = (b"body", b"id", b"submitted_at", b"schema", b"headers")


def fields_of(message: Message) -> list[bytes]:
    """What publish.lua makes of what it is given."""
    message_id, _, submitted_at, schema, headers, body = (
        value if isinstance(value, bytes) else value.encode() for value in write([message])
    )
    values = (body, message_id, submitted_at, schema, headers)
    pairs = zip(NAMES, values, strict=True)
    return [part for pair in pairs if pair[1] or pair[0] != b"headers" for part in pair]


@pytest.mark.parametrize("submitted_at", [None, 0.0, 1234567890.125])
@pytest.mark.parametrize("rank", Rank)
@pytest.mark.parametrize("headers", [{}, {"deadline": "1.5", "ünicode": "\ud800 🐧"}])
def test_what_is_written_is_read(
    headers: dict[str, str], rank: Rank, submitted_at: float | None
) -> None:
    sent = Message(b"\xff\x00", "an id ü", rank, submitted_at, 7, headers)
    read = parse("train", rank.name.lower().encode(), b"1-0", fields_of(sent))
    assert read == (sent, 0, None)


def test_a_body_alone_is_a_sound_message() -> None:
    message, attempts, defect = parse("train", b"normal", b"1-0", [b"body", b"{}"])
    assert (message.body, message.rank, message.schema) == (b"{}", Rank.NORMAL, 0)
    assert message.submitted_at is None
    assert (attempts, defect) == (0, None)


def test_a_foreign_message_is_known_by_its_place() -> None:
    def id_of(queue: str, rank: bytes, entry: bytes) -> str:
        return parse(queue, rank, entry, [b"body", b"{}"])[0].id

    here = id_of("train", b"normal", b"1-0")
    assert here == id_of("train", b"normal", b"1-0")
    others = [
        id_of("evaluate", b"normal", b"1-0"),
        id_of("train", b"high", b"1-0"),
        id_of("train", b"normal", b"1-1"),
    ]
    assert len({here, *others}) == 4


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ([b"id", b"\xff"], "id"),
        ([b"schema", b"one"], "schema"),
        ([b"schema", b"-1"], "schema"),
        ([b"submitted_at", b"yesterday"], "time"),
        ([b"submitted_at", b"inf"], "time"),
        ([b"attempts", b"1.5"], "attempts"),
        ([b"attempts", b"-1"], "attempts"),
        ([b"attempts", b"9" * 5000], "attempts"),
        ([b"headers", b"{"], "headers"),
        ([b"headers", b"\xff"], "headers"),
        ([b"headers", b"[]"], "headers"),
        ([b"headers", b'{"a": 1}'], "headers"),
        ([b"headers", b"[" * 100_000], "headers"),
    ],
)
def test_a_damaged_field_is_named_and_the_body_kept(fields: list[bytes], word: str) -> None:
    message, attempts, defect = parse("train", b"normal", b"1-0", [b"body", b"{}", *fields])
    assert defect is not None
    assert word in defect
    assert message.body == b"{}"
    assert attempts == 0


def test_an_entry_without_a_body_keeps_what_it_has() -> None:
    message, _, defect = parse("train", b"normal", b"1-0", [b"payload", b"\xff", b"\xfe", b"2"])
    assert defect is not None
    assert "no field 'body'" in defect
    assert message.body == rb'{"payload": "\\xff", "\\xfe": "2"}'


def test_a_count_beyond_all_reason_is_cut() -> None:
    _, attempts, defect = parse("train", b"low", b"1-0", [b"body", b"{}", b"attempts", b"9" * 40])
    assert attempts == 1_000_000_000
    assert defect is None


def test_an_id_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(InvalidJob, match="surrogate"):
        write([Message(b"{}", id="\ud800")])


OWN = [b"rank", b"high", b"id", b"one", b"reason", b"\xffno", b"attempts", b"3", b"died_at"]


def test_a_dead_letter_is_read() -> None:
    own = [*OWN, b"1500", b"traceback", b"at line 1"]
    letter = dead_letter("train", b"5-0", [*own, b"body", b"{}", b"id", b"other"])
    assert letter.traceback == "at line 1"
    assert letter.message.id == "one"
    assert letter.message.rank is Rank.HIGH
    assert letter.message.body == b"{}"
    assert (letter.reason, letter.attempts, letter.died_at) == ("\ufffdno", 3, 1.5)


@pytest.mark.parametrize(
    "own",
    [
        [],
        [b"rank"],
        [*OWN, b"soon", b"traceback", b""],
        [*OWN, b"9" * 400, b"traceback", b""],
        [*OWN[:7], b"many", b"died_at", b"1", b"traceback", b""],
    ],
    ids=["nothing", "half a pair", "no time", "beyond time", "no number"],
)
def test_an_entry_of_somebody_else_among_the_dead_letters(own: list[bytes]) -> None:
    letter = dead_letter("train", b"1500-0", [*own, b"body", b"{}"])
    if len(own) == 1:
        assert b"rank" in letter.message.body
        return
    assert letter.message.body == b"{}"
    assert (letter.reason, letter.attempts, letter.died_at) == ("", 0, 1.5)
