"""``docs/values.md`` says what arrives as what: every row is sent every way, and more besides."""

from __future__ import annotations

import json
import logging
import math
import re
import signal
import threading
from array import array
from collections import OrderedDict, UserDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from pathlib import Path, PurePosixPath
from types import MappingProxyType, SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from grid import Grid

from synmanager.errors import InvalidJob
from synmanager.message import decode, dump, encode
from synmanager.train import TrainProducerOperator
from synmanager.worker import Worker

PAGE = Path(__file__).parents[2] / "docs" / "values.md"
ROWS = re.findall(r"^\| ([^|]+) \| `([^|]+)` \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(), re.M)


class Level(IntEnum):
    HIGH = 3


class Mode(str, Enum):
    FAST = "fast"


class Colour(Enum):
    RED = 1


@dataclass
class Model:
    rate: float


class Scalar:
    """A number as numpy has them."""

    shape = ()

    def __init__(self, value: Any) -> None:
        self._value = value

    def tolist(self) -> Any:
        return self._value

    item = tolist

    def __str__(self) -> str:
        return str(self._value)


class Array:
    """An array as numpy has them, abbreviated when it is written."""

    def __init__(self, values: list[Any]) -> None:
        self._values = values

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._values),)

    def __len__(self) -> int:
        return len(self._values)

    def tolist(self) -> list[Any]:
        return self._values

    def __str__(self) -> str:
        return "[0. 0. 0. ... 0. 0. 0.]"


class Dates(Array):
    """An array of dates, which turns into nanoseconds."""

    dtype = SimpleNamespace(kind="M")

    def __iter__(self) -> Iterator[Any]:
        return map(DateScalar, self._values)

    def tolist(self) -> list[Any]:
        return [1577836800000000000] * len(self._values)


class DateScalar(Scalar):
    dtype = SimpleNamespace(kind="M")

    def tolist(self) -> Any:
        return 1577836800000000000


class Table:
    def __str__(self) -> str:
        return "0 1 2 ... 97 98 99"


class Sparse:
    def tolist(self) -> Any:
        raise NotImplementedError("sparse")

    def __str__(self) -> str:
        return "sparse([0, 0, ..., 0])"


TYPES: list[type] = [
    Colour, Decimal, Fraction, Level, Mode, Model, OrderedDict, PurePosixPath, Sparse, Table, UUID,
    array, date, datetime, deque, time, timedelta, timezone,
]  # fmt: skip

NUMPY = SimpleNamespace(
    float32=Scalar,
    int64=Scalar,
    bool_=Scalar,
    datetime64=DateScalar,
    array=Array,
    dates=Dates,
    zeros=lambda shape: Array([[0.0] * shape[1] for _ in range(shape[0])]),
)


@pytest.fixture
def names() -> Iterator[dict[str, Any]]:
    """What the page's examples are written with."""
    with open("/dev/null", encoding="utf-8") as stream:
        yield {kind.__name__: kind for kind in TYPES} | {
            "MappingProxyType": MappingProxyType,
            "numpy": NUMPY,
            "nan": math.nan,
            "inf": math.inf,
            "stream": stream,
        }


@pytest.fixture(autouse=True)
def _nobody_was_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synmanager.values._warned", set())


def told(value: Any) -> str:
    return re.sub(r"0x[0-9a-f]+", "0x0", repr(value))


def result_of(grid: Grid, result: Any) -> Any:
    """What the archive gets when a handler returns this; None if nothing."""
    grid.put({})
    Worker({"train": lambda **_: result}, url=grid.url).run(max_jobs=1, idle_timeout=0)
    return grid.consumer("completed").poll_message(lambda **job: job)


@pytest.mark.parametrize(("what", "given", "lenient", "strict"), ROWS, ids=[r[0] for r in ROWS])
def test_every_row_of_the_page(
    what: str,
    given: str,
    lenient: str,
    strict: str,
    grid: Grid,
    names: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    value = eval(given, names)
    producer, consumer = grid.producer(), grid.consumer()
    lenient, _, warned = lenient.partition(", with")
    for body in (producer.process(x=value), producer.create_message({"x": value})):
        sent = json.loads(body)
        assert told(sent["x"]) == told(eval(lenient.strip("`"), names))
    assert told(consumer.poll_message(lambda x: x)) == told(sent["x"])
    warnings = [r.getMessage() for r in caplog.records if r.name == "synmanager.values"]
    assert len(warnings) == bool(warned)  # once, though it was sent twice
    assert all(warning.startswith("job['x'] is a") for warning in warnings)

    if strict == "refused":
        with pytest.raises(InvalidJob, match=r"^job\['x'\] is an? \w+[, ]"):
            producer.submit({"x": value})
        with pytest.raises(InvalidJob, match=r"^jobs\[1\]: job\['x'\] is an? \w+[, ]"):
            producer.submit_many([{}, {"x": value}])
        assert grid.count() == {}
        assert result_of(grid, {"x": value}) is None
        return
    expected = told(eval((lenient if strict == "the same" else strict).strip("`"), names))
    producer.submit({"x": value})
    producer.submit_many([{"x": value}])
    for _ in range(2):
        assert told(consumer.poll_message(lambda x: x)) == expected
    assert told(result_of(grid, {"x": value})["x"]) == expected


def test_there_are_rows() -> None:
    assert len(ROWS) > 30
    assert len(ROWS) == len(re.findall(r"^\| (?!what|---)", PAGE.read_text(), re.M))


def test_the_place_is_named(names: dict[str, Any]) -> None:
    job: dict[str, Any] = {"model": {"weights": (0, 1, [2], print)}, "a": [[]] * 3}
    with pytest.raises(InvalidJob, match=r"^job\['model'\]\['weights'\]\[3\] is a builtin_func"):
        encode(job)
    inside = {"a": MappingProxyType({"b": Array([1, UserDict({7: {1}})])})}
    with pytest.raises(
        InvalidJob, match=r"^job\['a'\]\['b'\]\[1\]\[7\] is a set, .*; send a list$"
    ):
        encode(inside)
    with pytest.raises(InvalidJob, match=r"^job\['\\x1b\[2J\\n'\] is a set"):
        encode({"\x1b[2J\n": {1}})


class Offers:
    """Whatever a test wants it to offer."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def offering(*names: str) -> type[Offers]:
    def fail(self: Offers, *arguments: Any) -> Any:
        raise self.error

    return type("Offering", (Offers,), dict.fromkeys(names, fail))


FAILING: list[BaseException] = [
    ValueError("planted"),
    TypeError("planted"),
    MemoryError(),
    OSError(5, "planted"),
    UnicodeEncodeError("utf-8", "\ud800", 0, 1, "planted"),
    StopIteration(),
    SystemExit(2),
    GeneratorExit(),
]


@pytest.mark.parametrize("error", FAILING, ids=repr)
def test_a_value_that_raises_is_an_invalid_job(error: BaseException) -> None:
    for names in (("tolist", "__str__"), ("item", "__str__"), ("__str__",), ("__fspath__",)):
        value = offering(*names)(error)
        with pytest.raises(InvalidJob, match=r"^job\['k'\]\[0\] is an Offering"):
            encode({"k": [value]})
        if "__str__" in names:
            with pytest.raises(InvalidJob, match=r"^job\['k'\]\[0\] is an Offering"):
                dump({"k": [value]})

    class Awkward(Mapping[str, Any]):
        def __getitem__(self, key: str) -> Any:
            raise error

        def __iter__(self) -> Iterator[str]:
            return iter("a")

        def __len__(self) -> int:
            return 1

        def __str__(self) -> str:
            return "awkward"

    with pytest.raises(InvalidJob, match=r"^job\['k'\] is an Awkward that cannot be written"):
        encode({"k": Awkward()})
    assert dump({"k": Awkward()}) == '{"k": "awkward"}'  # as 0.1.0


class Endless(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        return 1

    def __iter__(self) -> Iterator[str]:
        number = 0
        while True:
            yield str(number)
            number += 1

    def __len__(self) -> int:
        return 1


class Nested:
    def tolist(self) -> Any:
        return [Nested()]


class Itself:
    def tolist(self) -> Any:
        return [self]


class Same:
    def tolist(self) -> Any:
        return Same()

    item = tolist


class Vast:
    shape = (10**9, 0)

    def tolist(self) -> Any:
        raise AssertionError("was made into lists")

    def __len__(self) -> int:
        return 10**9


@pytest.mark.parametrize("write", [dump, encode])
@pytest.mark.parametrize(
    ("value", "why"),
    [
        (Endless(), "over the limit of 100,000 bytes"),
        (Nested(), "nested more than 500 deep, or cyclic"),
        (Itself(), r"(?i)circular|cyclic"),
        (Vast(), "of 1,000,000,000 values, over the limit"),
        ([Array([0] * 20_000)] * 2, r"\[0\] is an Array of 20,000 values, over the limit"),
    ],
    ids=["keys without end", "lists without end", "a cycle", "vast", "vast together"],
)
def test_a_value_without_end_is_an_invalid_job(write: Any, value: Any, why: str) -> None:
    with pytest.raises(InvalidJob, match=why):
        write({"k": value}, 100_000)


class Twice:
    def tolist(self) -> Any:
        return [Twice(), Twice()]


def test_the_place_is_looked_for_within_reason() -> None:
    for endless in (Nested(), Itself(), Twice(), Endless()):
        with pytest.raises(InvalidJob, match=r"is a set, which JSON has no form for"):
            encode({"z": endless, "a": {1}})
    with pytest.raises(InvalidJob, match=r"^job\['a'\]\[50000\]\['b'\] is a set"):
        encode({"a": [{"b": 1}] * 50_000 + [{"b": {1}}]})


def test_a_result_is_called_one() -> None:
    for result, why in (
        ({"a": {1}}, r"^result\['a'\] is a set"),
        ({"a": "\ud800"}, r"^result\['a'\] holds a lone surrogate"),
        ({(1, 2): 3}, r"^the keys of result must"),
        ({"a": "x" * 100}, r"^the result is 109 bytes"),
        ([], r"^a result is a mapping"),
    ):
        wrong: Any = result
        with pytest.raises(InvalidJob, match=why):
            encode(wrong, 100, name="result")


def test_a_value_that_offers_itself_again_offers_nothing() -> None:
    with pytest.raises(InvalidJob, match=r"^job\['k'\] is a Same, which JSON has no form for"):
        encode({"k": Same()})
    assert re.search("Same object at 0x", dump({"k": Same()}))


def test_a_range_without_end_is_not_written_out() -> None:
    with pytest.raises(InvalidJob, match="over the limit"):
        encode({"k": range(10**15)})


@pytest.mark.parametrize("write", [dump, encode])
def test_what_only_a_class_or_a_mock_offers_is_not_asked_for(write: Callable[..., Any]) -> None:
    class Anything:
        def __getattr__(self, name: str) -> Any:
            return lambda: [name]

        def __str__(self) -> str:
            return "anything"

    for value in (Anything(), Array):
        try:
            assert "tolist" not in str(write({"k": value}))
        except InvalidJob:
            assert write is encode


def test_surrogates_are_found_in_what_a_value_turns_into() -> None:
    for write in (dump, encode):
        with pytest.raises(InvalidJob, match="surrogate"):
            write({"k": Array(["\ud800"])})
    assert decode(encode({"k": Array(["🐧"])})) == {"k": ["🐧"]}
    assert decode(dump({"k": Array(["🐧"])}).encode()) == {"k": ["🐧"]}


def test_the_caller_s_own_handler_passes_through() -> None:
    class Interrupted:
        def __str__(self) -> str:
            signal.raise_signal(signal.SIGUSR1)
            return "never"

        def tolist(self) -> Any:
            return str(self)

    def late(number: int, frame: object) -> None:
        raise TimeoutError("the caller's own")

    before = signal.signal(signal.SIGUSR1, late)
    try:
        for write in (dump, encode):
            with pytest.raises(TimeoutError, match="the caller's own"):
                write({"k": Interrupted()})
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_warnings_are_said_once_for_each_type_whoever_asks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class One: ...

    class Two: ...

    threads = [
        threading.Thread(target=dump, args=({"k": [One(), Two(), lambda: 0]},)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
        thread.join()
    assert len(caplog.records) == 3
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_0_1_0_s_texts_without_a_loss_are_no_reason_to_warn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Tag:
        def __str__(self) -> str:
            return "<p>markup</p>"

    dump({"k": [Tag(), b"at 0x7f ... ", PurePosixPath(".."), {"wait..."}, ValueError("a")]})
    assert caplog.records == []


def test_it_costs_a_plain_job_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synmanager.message.Writer", None)
    assert decode(encode({"a": [1, "b", None, {"c": 0.5}]})) == {"a": [1, "b", None, {"c": 0.5}]}


def test_create_message_needs_no_connection(grid: Grid) -> None:
    assert TrainProducerOperator(url=grid.url).create_message({"k": Scalar(1)}) == '{"k": 1}'
