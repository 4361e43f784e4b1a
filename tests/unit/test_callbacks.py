"""Calling conventions of callbacks, and what is refused when it is registered."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from grid import Grid

from synmanager.archiver import Archiver
from synmanager.engine.callbacks import adapt
from synmanager.errors import InvalidCallback
from synmanager.worker import Worker

JOB = {"project_id": "p", "run": 3}


def readme_style(kwargs: Any, host: Any) -> Any:
    return ("readme", kwargs, host)


def readme_style_with_more(kwargs: Any, host: Any, retries: int = 3, *rest: Any) -> Any:
    return ("readme", kwargs, host)


def readme_style_positional_only(kwargs: Any, host: Any, /) -> Any:
    return ("readme", kwargs, host)


def released_style(**kwargs: Any) -> Any:
    return ("0.1.0", kwargs)


def released_style_by_keys(project_id: Any, run: Any) -> Any:
    return ("0.1.0", {"project_id": project_id, "run": run})


def released_style_with_default(project_id: Any, *, run: Any = 0, rate: float = 0.1) -> Any:
    return ("0.1.0", {"project_id": project_id, "run": run})


class Method:
    def readme(self, kwargs: Any, host: Any) -> Any:
        return ("readme", kwargs, host)

    def released(self, **kwargs: Any) -> Any:
        return ("0.1.0", kwargs)

    def __call__(self, **kwargs: Any) -> Any:
        return ("0.1.0", kwargs)


README_STYLE: dict[str, Callable[..., Any]] = {
    "function": readme_style,
    "with more parameters": readme_style_with_more,
    "positional only": readme_style_positional_only,
    "method": Method().readme,
    "lambda": lambda kwargs, host: ("readme", kwargs, host),
    "partial": partial(readme_style_with_more, retries=1),
}
RELEASED_STYLE: dict[str, Callable[..., Any]] = {
    "**kwargs": released_style,
    "keys": released_style_by_keys,
    "default": released_style_with_default,
    "method": Method().released,
    "object": Method(),
    "lambda": lambda **job: ("0.1.0", job),
    "partial": partial(released_style, run=9),
}


@pytest.mark.parametrize("callback", README_STYLE.values(), ids=README_STYLE.keys())
@pytest.mark.parametrize("name", ["process_callback", "process_function"])
def test_the_readme_s_parameter_names_mean_the_readme_s_call(
    callback: Callable[..., Any], name: str
) -> None:
    functions = {"process_callback": None, "process_function": None, name: callback}
    assert adapt(**functions, host="mq")(dict(JOB)) == ("readme", JOB, "mq")


@pytest.mark.parametrize("callback", RELEASED_STYLE.values(), ids=RELEASED_STYLE.keys())
def test_everything_else_is_called_with_keywords(callback: Callable[..., Any]) -> None:
    assert adapt(callback, None, "mq")(dict(JOB)) == ("0.1.0", JOB)


def test_process_callback_is_called_as_in_the_readme_whatever_its_names() -> None:
    def perform(job: Any, broker: Any) -> Any:
        return (job, broker)

    assert adapt(None, perform, "mq")(dict(JOB)) == (JOB, "mq")
    assert adapt(None, lambda *both: both, "mq")(dict(JOB)) == (JOB, "mq")


def test_other_names_by_position_are_keys_of_the_job() -> None:
    def perform(host: Any, kwargs: Any) -> Any:  # the README's names in another order
        return (host, kwargs)

    assert adapt(perform, None, "mq")({"host": 1, "kwargs": 2}) == (1, 2)


def test_a_callable_that_tells_no_signature_is_trusted() -> None:
    assert adapt(dict, None, "mq")(dict(JOB)) == JOB


async def coroutine(**kwargs: Any) -> None: ...


async def readme_coroutine(kwargs: Any, host: Any) -> None: ...


def generator(**kwargs: Any) -> Any:
    yield kwargs


async def async_generator(**kwargs: Any) -> Any:
    yield kwargs


class AsyncObject:
    async def __call__(self, **kwargs: Any) -> None: ...


class GeneratorObject:
    def __call__(self, **kwargs: Any) -> Any:
        yield kwargs


REFUSED: dict[str, Any] = {
    "nothing": None,
    "a string": "perform_action",
    "a number": 7,
    "a dict": {},
    "no parameters": lambda: None,
    "positional only": lambda job, /: None,
    "positional only with a keyword": lambda job, /, run: None,
    "star args": lambda *jobs: None,
    "coroutine": coroutine,
    "readme-style coroutine": readme_coroutine,
    "partial of a coroutine": partial(coroutine, run=1),
    "generator": generator,
    "asynchronous generator": async_generator,
    "object whose call is a coroutine": AsyncObject(),
    "object whose call is a generator": GeneratorObject(),
    "readme names and one more": lambda kwargs, host, third: None,
    "readme names and a keyword": lambda kwargs, host, *, third: None,
}
REFUSED_AS_PROCESS_CALLBACK: dict[str, Any] = {
    "no parameters": lambda: None,
    "one parameter": lambda kwargs: None,
    "three parameters": lambda kwargs, host, third: None,
    "keywords": lambda **kwargs: None,
    "keyword only": lambda *, kwargs, host: None,
    "coroutine": readme_coroutine,
    "not callable": "perform_action",
}


class TestRefused:
    @pytest.mark.parametrize("callback", REFUSED.values(), ids=REFUSED.keys())
    def test_as_the_first_argument(self, callback: Any, grid: Grid) -> None:
        consumer = grid.consumer()
        grid.put(JOB)
        for register in (
            lambda: consumer.listen_message(callback, max_jobs=1),
            lambda: consumer.listen_message(process_function=callback, max_jobs=1),
            lambda: consumer.poll_message(callback),
            lambda: consumer.generate_callback(callback),
        ):
            with pytest.raises(InvalidCallback):
                register()
        assert grid.count() == {"ready": 1}

    @pytest.mark.parametrize(
        "callback",
        REFUSED_AS_PROCESS_CALLBACK.values(),
        ids=REFUSED_AS_PROCESS_CALLBACK.keys(),
    )
    def test_as_process_callback(self, callback: Any, grid: Grid) -> None:
        consumer = grid.consumer()
        grid.put(JOB)
        with pytest.raises(InvalidCallback):
            consumer.listen_message(process_callback=callback, max_jobs=1)
        with pytest.raises(InvalidCallback):
            consumer.poll_message(process_callback=callback)
        assert grid.count() == {"ready": 1}

    @pytest.mark.parametrize("callback", REFUSED.values(), ids=REFUSED.keys())
    def test_by_worker_and_archiver(self, callback: Any) -> None:
        with pytest.raises(InvalidCallback):
            Worker({"train": callback}, url="memory")
        with pytest.raises(InvalidCallback):
            Archiver(callback, url="memory")

    def test_none_and_two(self, grid: Grid) -> None:
        consumer = grid.consumer()
        for arguments in ({}, {"process_function": print, "process_callback": print}):
            with pytest.raises(InvalidCallback):
                consumer.poll_message(**arguments)

    def test_is_a_type_error_that_names_the_callback(self) -> None:
        with pytest.raises(TypeError, match=r"Unfit\.unfit"):
            adapt(Unfit().unfit, None, "mq")


class Unfit:
    def unfit(self, job: Any, /) -> None: ...
