"""Everything that goes wrong with a password in hand, with its traceback, and every repr.

Config:
    port: of the broker.
    closed: a port where nobody listens.
    scheme, user, password.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from program import begin

from synmanager import Archiver, Worker
from synmanager.backends.registry import create_backend
from synmanager.settings import load_settings
from synmanager.train import TrainConsumerOperator, TrainProducerOperator

config, journal = begin()
scheme, user = config["scheme"], config["user"]
raw, quoted = config["password"], quote(config["password"], safe="")
here, nowhere = f"127.0.0.1:{config['port']}", f"127.0.0.1:{config['closed']}"


def attempt(what: str, action: Callable[..., Any], *args: Any) -> None:
    try:
        shown = repr(action(*args))
    except Exception as error:
        logging.exception("%s", what)
        traceback.print_exception(error)
        shown = f"{error!r} {error} {error.args}"
        journal.write("mishap", what=what, error=type(error).__name__, shown=shown)
    else:
        journal.write("fine", what=what, shown=shown)


def connect(url: str) -> None:
    TrainProducerOperator(url=url).connect()


def make_worker(url: str) -> Worker:
    return Worker({"train": print}, url=url, lease=1)


def fail(**job: Any) -> None:
    raise ZeroDivisionError


for what, url in {
    "unescaped": f"{scheme}://{user}:{raw}@{here}/",
    "unescaped without a port": f"{scheme}://{user}:{raw}@localhost",
    "bad port": f"{scheme}://{user}:{quoted}@127.0.0.1:70000/",
    "no number": f"{scheme}://{user}:{quoted}@127.0.0.1:port/",
    "unknown scheme": f"kafka://{user}:{quoted}@{here}/",
    "bad option": f"{scheme}://{user}:{quoted}@{here}/?no_such_option=1",
    "bad options": f"{scheme}://{user}:{quoted}@{here}/?nonsense",
    "no scheme": f"{user}:{quoted}@{here}",
    "bad brackets": f"{scheme}://{user}:{quoted}@[::1/",
    "nobody there": f"{scheme}://{user}:{quoted}@{nowhere}/",
    "unknown user": f"{scheme}://stranger:{quoted}@{here}/",
    "no TLS there": f"{scheme}s://{user}:{quoted}@{here}/",
    "unknown place": f"{scheme}://{user}:{quoted}@{here}/999",
}.items():
    attempt(what, connect, url)
    attempt(f"{what}, a Worker", make_worker, url)

attempt("settings", load_settings)
attempt("address", lambda: load_settings().address)
attempt("backend", lambda: create_backend(load_settings().address))
attempt("worker", lambda: Worker({"train": dict}))
attempt("archiver", lambda: Archiver(dict))
with TrainProducerOperator() as producer, TrainConsumerOperator() as consumer:
    producer.process(key="first")
    for operator in (producer, consumer):
        attempt("operator", repr, operator)
        attempt("attributes", vars, operator)
        attempt("connection", getattr, operator, "connection")
        attempt("channel", getattr, operator, "channel")
    attempt("poll", consumer.poll_message, fail)
    attempt("pickle", producer.__reduce__)
