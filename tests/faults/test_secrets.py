"""A canary password appears in no log, exception, repr or traceback.

Beside this, what every process of every other test prints and logs, at DEBUG and with its
driver's log, is searched by the fixture ``processes``; what pytest shows, by a hook.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from harness.brokers import CANARY, PASSWORD, USER, Broker
from harness.processes import Processes
from ports import free_port

from synmanager import Worker
from synmanager.errors import AccessRefused
from synmanager.train import TrainProducerOperator

pytestmark = pytest.mark.server


def test_no_mishap_shows_the_password(
    broker: Broker, processes: Processes, figures: Callable[[str], None]
) -> None:
    process = processes.start(
        "mishaps",
        "mishaps",
        env={"SYNMANAGER_TIMEOUT": "5", "SYNMANAGER_RECONNECT": "0"},
        scheme=broker.scheme,
        port=broker.port,
        closed=free_port(),
        user=USER,
        password=PASSWORD,
    )
    assert process.wait(60) == 0, process.output[-2000:]
    assert CANARY not in process.output
    errors = {
        event["what"]: event["error"]
        for event in processes.history().events
        if event["event"] == "mishap"
    }
    wrong = "ConfigurationError"
    expected = {
        "unescaped": wrong,
        "unescaped without a port": wrong,
        "bad port": wrong,
        "no number": wrong,
        "unknown scheme": wrong,
        "bad option": wrong,
        "bad options": wrong,
        "no scheme": wrong,
        "bad brackets": wrong,
        "nobody there": "BrokerUnavailable",
        "unknown user": "AccessRefused",
    }
    assert {what: errors.get(what) for what in expected} == expected
    assert errors["no TLS there"] in ("AccessRefused", "BrokerUnavailable")
    figures(f"{len(errors)} mishaps, {len(process.output):,} characters of log without it")


@pytest.mark.parametrize("what", ["wrong password", "unknown place", "no rights"])
def test_access_refused_without_a_retry_loop(
    what: str, broker: Broker, figures: Callable[[str], None]
) -> None:
    if what == "wrong password":
        url = broker.url(password=f"not-{CANARY}")
    elif what == "no rights":
        url = broker.url_of_a_stranger()
    else:  # an unknown virtual host, or a database beyond the server's sixteen
        url = broker.url().rpartition("/")[0] + "/999"
    began = time.monotonic()
    for connect in (
        TrainProducerOperator(url=url).connect,
        Worker({"train": dict}, url=url).run,  # which waits for a broker that is not there
    ):
        with pytest.raises(AccessRefused) as caught:
            connect()
        assert CANARY not in str(caught.value)
    seconds = time.monotonic() - began
    assert seconds < 10  # after which a refused login would be tried again
    figures(f"{what}: {type(caught.value).__name__} after {seconds:.2f} s: {caught.value}")
