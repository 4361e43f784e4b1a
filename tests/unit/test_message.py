"""The codec: what 0.1.0 wrote and read, and the right answer to everything else."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from synmanager.errors import InvalidJob, SynmanagerError, Undecodable
from synmanager.message import (
    DEFAULT_MAX_BYTES,
    MAX_DEPTH,
    SCHEMA,
    Message,
    Rank,
    decode,
    dump,
    encode,
    header_texts,
    new_ids,
    with_headers,
)

SURROGATES = st.characters(categories=["Cs"])
KEYS = st.text(max_size=5) | st.just("NaN")
OBJECTS = (  # what default=str is for
    st.dates() | st.uuids() | st.decimals() | st.binary(max_size=5) | st.just(PurePosixPath("/a"))
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | OBJECTS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.dictionaries(st.integers(), inner, max_size=4)
    ),
    max_leaves=20,
)
JOBS = st.dictionaries(KEYS, VALUES, max_size=6)


def same(one: Any, other: Any) -> bool:
    """Equality under which NaN is NaN, 1 is not True and 1 is not 1.0."""
    return repr(one) == repr(other)


def nested(depth: int, leaf: Any = 0, *, of: str = "lists") -> dict[str, Any]:
    """A job of this depth, its own braces included."""
    for _ in range(depth - 1):
        leaf = [leaf] if of == "lists" else {"k": leaf}
    return {"k": leaf}


class TestSubmit:
    @given(JOBS)
    @example({"nan": math.nan, "inf": -math.inf})
    @example({"date": datetime.date(2020, 2, 29), "when": datetime.datetime(2020, 1, 1, 2, 3)})
    @example({"tuple": (1, (2,)), "path": PurePosixPath("/data"), "decimal": Decimal("1.10")})
    @example({"uuid": UUID(int=1), "bytes": b"\xff", "set": {1}, "class": int})
    @example({"nested": {1: "one", 2: "two"}, "text": "\\ud800 spelled out", "emoji": "🐧"})
    @example({"NaN": {"NaN": [{"NaN": 1}]}})
    def test_writes_what_0_1_0_wrote(self, job: dict[str, Any]) -> None:
        expected = json.dumps(job, default=str, sort_keys=True)
        assert dump(job) == expected
        assert same(decode(dump(job).encode()), json.loads(expected))
        with suppress(InvalidJob):  # bytes, sets and classes: see test_values.py
            assert encode(job) == expected.encode()

    @pytest.mark.parametrize("kind", [OrderedDict, MappingProxyType])
    def test_any_mapping_is_a_job(self, kind: type[Mapping[str, Any]]) -> None:
        assert dump(kind({"b": 1, "a": 2})) == '{"a": 2, "b": 1}'  # type: ignore[call-arg]

    @pytest.mark.parametrize("job", [None, "text", b"{}", 1, ["a"], [("a", 1)], {1}, object()])
    def test_nothing_else_is(self, job: Any) -> None:
        with pytest.raises(InvalidJob, match="a job is a mapping"):
            dump(job)

    def test_a_cycle(self) -> None:
        job: dict[str, Any] = {"list": []}
        job["list"].append(job)
        with pytest.raises(InvalidJob, match=r"(?i)circular|cyclic"):
            dump(job)

    @pytest.mark.parametrize("of", ["lists", "objects"])
    @pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 995, 5_000, 100_000])
    def test_nesting_too_deep_for_the_reader(self, depth: int, of: str) -> None:
        with pytest.raises(InvalidJob, match="nested"):
            dump(nested(depth, of=of))

    @pytest.mark.parametrize("of", ["lists", "objects"])
    def test_the_deepest_nesting_can_be_read_again(self, of: str) -> None:
        job = nested(MAX_DEPTH, of=of)
        assert decode(encode(job)) == job

    def test_depth_is_not_mistaken_for_width_or_for_text(self) -> None:
        wide: dict[str, Any] = {"lists": [[] for _ in range(2 * MAX_DEPTH)]}
        brackets = {"text": '[{"\\' * MAX_DEPTH + '"[', '[{"\\': "{" * MAX_DEPTH}
        for job in (wide, brackets):
            assert decode(encode(job)) == job
        with pytest.raises(InvalidJob, match="nested"):
            dump({**brackets, **nested(MAX_DEPTH + 1)})

    @pytest.mark.parametrize("over", [0, 1])
    def test_the_limit_of_size_is_exact(self, over: int) -> None:
        job = {"k": "é" * 100}
        limit = len(dump(job)) - over
        if over:
            with pytest.raises(InvalidJob, match="over the limit"):
                dump(job, limit)
            with pytest.raises(InvalidJob, match="over the limit"):
                encode(job, limit)
        else:
            assert len(encode(job, limit)) == limit

    def test_the_limit_of_size_by_default(self) -> None:
        room = DEFAULT_MAX_BYTES - len(dump({"k": ""}))
        assert len(encode({"k": "x" * room})) == DEFAULT_MAX_BYTES == 8 * 1024 * 1024
        with pytest.raises(InvalidJob, match="over the limit"):
            encode({"k": "x" * (room + 1)})

    @given(st.text(), SURROGATES, st.text())
    @example("", "\ud83d", "\ude00")  # halves that another reader would join
    @example("🐧", "\udcff", "🐧")
    def test_a_lone_surrogate(self, before: str, surrogate: str, after: str) -> None:
        text = before + surrogate + after
        for job in (
            {"k": text},
            {text: 1},
            {"k": [{text: 1}]},
            {"k": PurePosixPath(text)},
            MappingProxyType({"k": text}),
        ):
            for write in (dump, encode):
                with pytest.raises(InvalidJob, match="surrogate"):
                    write(job)

    @pytest.mark.parametrize(
        "keys",
        [
            {1: "a", "1": "b"},
            {None: "a", "null": "b"},
            {True: "a", "true": "b"},
            {1.5: "a", "1.5": "b"},
            {float("nan"): "a", float("nan"): "b"},
        ],
        ids=["integer", "null", "true", "float", "nan"],
    )
    def test_keys_that_collide_once_they_are_strings(self, keys: dict[Any, Any]) -> None:
        for job in (keys, {"k": keys}, {"k": [0, keys]}):
            with pytest.raises(InvalidJob):
                dump(job)

    @pytest.mark.parametrize("key", [b"bytes", (1, 2), datetime.date(2020, 1, 1), frozenset()])
    def test_keys_that_json_does_not_know(self, key: Any) -> None:
        for job in ({key: 1}, {"k": {key: 1}}):
            for write in (dump, encode):
                with pytest.raises(InvalidJob, match=r"the keys of job(\['k'\])? must"):
                    write(job)

    @pytest.mark.parametrize("error", [ValueError, TypeError, KeyError, RecursionError, OSError])
    def test_a_value_whose_str_fails(self, error: type[Exception]) -> None:
        class Awkward:
            def __str__(self) -> str:
                raise error("on purpose")

        with pytest.raises(InvalidJob):
            dump({"k": Awkward()})

    def test_what_is_wrong_is_said_with_its_place(self) -> None:
        with pytest.raises(InvalidJob, match=r"^job\['a'\]\[1\]\['b'\] holds a lone surrogate"):
            dump({"a": [0, {"b": "\ud800"}]})
        with pytest.raises(InvalidJob, match=r"^the keys of job\['a'\]\[0\] must all be strings"):
            dump({"a": [{1: 2, "b": 3}]})

    def test_an_integer_too_long_to_be_read(self) -> None:
        with pytest.raises(InvalidJob):
            dump({"k": 10**5000})

    def test_the_job_is_left_as_it_was(self) -> None:
        job = {"b": [1, {"c": (2,)}], "a": datetime.date(2020, 1, 1)}
        dump(job)
        assert job == {"b": [1, {"c": (2,)}], "a": datetime.date(2020, 1, 1)}
        assert list(job) == ["b", "a"]


class TestWire:
    @given(st.binary())
    @example(b"")
    @example(b"\x00")
    @example(b"{" * 100_000)
    @example(b'{"a": 1' + b"0" * 5_000 + b"}")
    def test_arbitrary_bytes_are_an_object_or_undecodable(self, body: bytes) -> None:
        with suppress(Undecodable):
            assert isinstance(decode(body), dict)

    @given(st.text(alphabet='{}[]",:\\ue019NaInfity-.+ \ufeff\ud800'))
    def test_nearly_json_is_an_object_or_undecodable(self, text: str) -> None:
        with suppress(Undecodable):
            assert isinstance(decode(text.encode("utf-8", "surrogatepass")), dict)

    @pytest.mark.parametrize(
        "body",
        [
            b"\xff",
            b'{"k": "\xe9"}',
            b'{"k": "\xed\xa0\x80"}',  # a surrogate, as UTF-8 must not have it
            b'{"k": "\xc0\xaf"}',  # an overlong slash
            '{"k": "é"}'.encode("latin-1"),
            '{"k": 1}'.encode("utf-16"),
            '{"k": 1}'.encode("utf-32"),
        ],
    )
    def test_not_utf_8(self, body: bytes) -> None:
        with pytest.raises(Undecodable, match="UTF-8"):
            decode(body)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b" ",
            b"text",
            b"{",
            b"{'k': 1}",
            b'{"k": 1,}',
            b'{"k": 1} {}',
            b"<xml/>",
            b'{"k": "\n"}',
            b'\xef\xbb\xbf{"k": 1}',
            '{"k": 1}'.encode("utf-16-le"),
        ],
    )
    def test_not_json(self, body: bytes) -> None:
        with pytest.raises(Undecodable, match="not JSON"):
            decode(body)

    @pytest.mark.parametrize("body", [b"1", b'"text"', b"null", b"true", b"[]", b'[{"k": 1}]'])
    def test_a_scalar_or_an_array(self, body: bytes) -> None:
        with pytest.raises(Undecodable, match="not an object"):
            decode(body)

    @pytest.mark.parametrize("opening", [b"[", b'{"k":', b'{"k":[', b'[{"k":'])
    def test_nested_a_hundred_thousand_deep(self, opening: bytes) -> None:
        closing = opening.replace(b'"k":', b"")[::-1].translate(bytes.maketrans(b"[{", b"]}"))
        for body in (opening * 100_000, opening * 100_000 + b"0" + closing * 100_000):
            with pytest.raises(Undecodable):
                decode(body)

    @pytest.mark.parametrize("over", [0, 1])
    def test_over_the_limit_of_size(self, over: int) -> None:
        body = encode({"k": "x" * 100})
        if over:
            with pytest.raises(Undecodable, match="over the limit"):
                decode(body, len(body) - over)
        else:
            assert decode(body, len(body)) == {"k": "x" * 100}

    def test_over_the_limit_of_size_by_default(self) -> None:
        with pytest.raises(Undecodable, match="over the limit"):
            decode(b" " * (DEFAULT_MAX_BYTES + 1))

    @pytest.mark.parametrize(
        ("body", "job"),
        [
            (b"{}", {}),
            (b' \r\n{"k" : 1}\t', {"k": 1}),
            ('{"k": "é🐧"}'.encode(), {"k": "é🐧"}),
            (b'{"k": "\\ud83d\\udc27"}', {"k": "🐧"}),
            (b'{"k": 1, "k": 2}', {"k": 2}),
            (b'{"k": Infinity, "l": -Infinity}', {"k": math.inf, "l": -math.inf}),
            (b'{"k": 1e400}', {"k": math.inf}),
        ],
    )
    def test_what_0_1_0_could_read(self, body: bytes, job: dict[str, Any]) -> None:
        assert decode(body) == job

    def test_nan_is_read_as_0_1_0_read_it(self) -> None:
        assert math.isnan(decode(b'{"k": NaN}')["k"])

    def test_an_error_does_not_hold_the_body(self) -> None:
        # A body of megabytes, or of somebody's data, has no place in a log line.
        for body in (b"secret" * 1000, b'"' + b"secret" * 1000 + b'"', b"secret\xff" * 1000):
            with pytest.raises(Undecodable) as error:
                decode(body)
            assert "secret" not in str(error.value)


class TestRank:
    @pytest.mark.parametrize(
        ("value", "rank"),
        [
            ("low", Rank.LOW),
            ("normal", Rank.NORMAL),
            ("high", Rank.HIGH),
            ("HIGH", Rank.HIGH),
            (Rank.LOW, Rank.LOW),
        ],
    )
    def test_is_known_by_its_name(self, value: Rank | str, rank: Rank) -> None:
        assert Rank.parse(value) is rank

    @pytest.mark.parametrize("value", ["", "urgent", " high", 3, -1, None, [], {}])
    def test_names_the_known_ones(self, value: Any) -> None:
        with pytest.raises(InvalidJob, match="'high', 'normal', 'low'"):
            Rank.parse(value)

    def test_orders_by_urgency(self) -> None:
        assert Rank.LOW < Rank.NORMAL < Rank.HIGH


class TestMessage:
    def test_has_an_id_of_its_own(self) -> None:
        one, two = Message(b"{}"), Message(b"{}")
        assert one.id
        assert one.id != two.id

    def test_ids_of_a_batch_lie_side_by_side(self) -> None:
        one, two = new_ids(300), new_ids(300)
        assert len({*one, *two}) == 600
        for batch in (one, two):
            assert batch == sorted(batch)
            assert all(re.fullmatch("[0-9a-f]{32}", each) for each in batch)
        assert sorted([*one, *two]) in ([*one, *two], [*two, *one])

    def test_says_what_wrote_it_and_when(self) -> None:
        message = Message(b"{}")
        assert message.schema == SCHEMA
        assert message.rank is Rank.NORMAL
        assert message.submitted_at is not None
        now = datetime.datetime.now().timestamp()
        assert message.submitted_at == pytest.approx(now, abs=60)

    def test_more_headers_beside_its_own(self) -> None:
        mine, ours = {"a": "mine"}, {"sweep": "s"}
        before = [
            Message(b"1", "one", Rank.HIGH, 1.5, 0, mine),
            Message(b"2", headers=ours),
            Message(b"3", headers=ours),
        ]
        after = with_headers(before, {"a": "more", "b": "more"})
        assert after[0] == Message(b"1", "one", Rank.HIGH, 1.5, 0, {"a": "mine", "b": "more"})
        assert after[1].headers == {"sweep": "s", "a": "more", "b": "more"}
        assert after[2].headers is after[1].headers  # which is written once
        assert [each.id for each in after] == [each.id for each in before]
        assert (mine, ours) == ({"a": "mine"}, {"sweep": "s"})

    def test_headers_as_text(self) -> None:
        one, two = {"a": "ä"}, {"b": '"'}
        messages = [Message(b"", headers=each) for each in (None, one, one, two, {}, one)]
        texts = list(header_texts(messages))
        assert [json.loads(text) if text else {} for text in texts] == [
            each.headers for each in messages
        ]
        assert (texts[0], texts[4]) == ("", "")

    @pytest.mark.parametrize("error", [InvalidJob, Undecodable])
    def test_errors_are_value_errors(self, error: type[Exception]) -> None:
        # 0.1.0 let json's own ValueError through.
        assert issubclass(error, ValueError)
        assert issubclass(error, SynmanagerError)
