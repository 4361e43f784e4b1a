"""Calling conventions of callbacks, and refusing a callback that cannot take a job.

Two conventions exist, and a component written for either must run unchanged:

- README: ``f(kwargs, host)``, passed as ``process_callback=``.
- 0.1.0: ``f(**kwargs)``, passed first or as ``process_function=``.

A callback passed first or as ``process_function=`` is taken for README-style only if its first
two parameters are named exactly ``kwargs`` and ``host``, as in the README; everything else is
called with the job's keys as keywords.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from synmanager.errors import InvalidCallback, SynmanagerError

__all__ = ["Callback", "Unfit", "adapt", "check_takes_one"]

Callback = Callable[..., Any]


class Unfit(SynmanagerError):
    """A job that cannot be run here, however often it is tried."""


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def adapt(
    process_function: Callback | None, process_callback: Callback | None, host: str
) -> Callable[[dict[str, Any]], Any]:
    """Return a function of the decoded job that calls the given callback as it expects.

    Raises:
        InvalidCallback: not exactly one callback is given, or it cannot take a job.
    """
    if (process_function is None) == (process_callback is None):
        raise InvalidCallback("pass one callback: process_callback= or process_function=")
    callback = process_callback if process_function is None else process_function
    assert callback is not None
    _check_callable(callback)
    try:
        signature = inspect.signature(callback)
    except (TypeError, ValueError):  # some built-ins do not tell; trust them
        signature = None

    fitted = callback if signature is None else _naming_what_does_not_fit(callback, signature)
    if process_callback is not None or (signature and _is_readme_style(signature)):
        if signature is not None:
            try:
                signature.bind({}, host)
            except TypeError as error:
                raise InvalidCallback(
                    f"{_name(callback)}{signature} must take (kwargs, host): {error}"
                ) from None
        return lambda job: fitted(job, host)

    if signature is not None:
        _refuse_unless_keywords(callback, signature)
    return lambda job: fitted(**job)


def check_takes_one(callback: Callback) -> None:
    """Refuse what cannot be called with one argument.

    Raises:
        InvalidCallback: it cannot, or calling it would run nothing.
    """
    _check_callable(callback)
    try:
        inspect.signature(callback).bind(None)
    except TypeError as error:
        raise InvalidCallback(f"{_name(callback)} must take one argument: {error}") from None
    except ValueError:  # as above
        return


def _check_callable(callback: Callback) -> None:
    """Refuse what cannot be called, or would run nothing if it were."""
    if not callable(callback):
        raise InvalidCallback(f"a callback must be callable, not {type(callback).__name__}")
    for refused, kind in (
        (inspect.iscoroutinefunction, "a coroutine function"),
        (inspect.isgeneratorfunction, "a generator function"),
        (inspect.isasyncgenfunction, "an asynchronous generator function"),
    ):
        if refused(callback) or refused(type(callback).__call__):
            raise InvalidCallback(f"{_name(callback)} is {kind}: calling it would run nothing")


def _naming_what_does_not_fit(callback: Callback, signature: inspect.Signature) -> Callback:
    """The callback, which refuses a job that lacks a key or has one too many as ``Unfit``.

    A signature may be a decorator's claim: what can be called in spite of it is called.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return callback(*args, **kwargs)
        except TypeError as error:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as mismatch:
                raise Unfit(f"{_name(callback)}{signature} cannot take it: {mismatch}") from error
            raise

    return call


def _is_readme_style(signature: inspect.Signature) -> bool:
    parameters = list(signature.parameters.values())[:2]
    return [p.name for p in parameters] == ["kwargs", "host"] and all(
        p.kind in _POSITIONAL for p in parameters
    )


def _refuse_unless_keywords(callback: Callback, signature: inspect.Signature) -> None:
    parameters = signature.parameters.values()
    for parameter in parameters:
        if (
            parameter.kind is inspect.Parameter.POSITIONAL_ONLY
            and parameter.default is inspect.Parameter.empty
        ):
            raise InvalidCallback(
                f"{_name(callback)}{signature} is called with a job's keys as keywords, "
                f"which cannot fill its positional-only {parameter.name!r}"
            )
    takes_keywords = (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    )
    if not any(parameter.kind in takes_keywords for parameter in parameters):
        raise InvalidCallback(
            f"{_name(callback)}{signature} takes no keywords, and a job is passed as keywords; "
            "declare its keys, or **kwargs, or (kwargs, host)"
        )


def _name(callback: Callback) -> str:
    return getattr(callback, "__qualname__", type(callback).__name__)
