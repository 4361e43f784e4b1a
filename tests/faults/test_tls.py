"""TLS: a certificate that cannot be trusted is refused at once, without a retry loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.brokers import CANARY, Broker
from harness.certificates import Authority
from harness.processes import Processes

from synmanager import Worker
from synmanager.errors import AccessRefused
from synmanager.testing.proxy import Proxy
from synmanager.train import TrainConsumerOperator, TrainProducerOperator

pytestmark = pytest.mark.server


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("self-signed", "self-signed certificate"),
        ("expired", "certificate has expired"),
        ("wrong host name", "IP address mismatch"),
    ],
)
def test_a_certificate_that_cannot_be_trusted(
    what: str,
    reason: str,
    authority: Authority,
    broker: Broker,
    figures: Callable[[str], None],
) -> None:
    if what == "self-signed":
        certificate = authority.self_signed("server")
    elif what == "expired":
        certificate = authority.signed("server", days=-1)
    else:
        certificate = authority.signed("server", address="DNS:elsewhere.example")
    slowest = 0.0
    with Proxy(broker.serve_tls(certificate)) as proxy:
        url = broker.url(proxy.port, cafile=authority.cafile)
        for connect in (
            TrainProducerOperator(url=url).connect,
            TrainConsumerOperator(url=url).connect,
            Worker({"train": dict}, url=url).run,  # which waits for a broker that is not there
        ):
            before, began = proxy.accepted, time.monotonic()
            with pytest.raises(AccessRefused, match=reason) as caught:
                connect()
            slowest = max(slowest, time.monotonic() - began)
            assert proxy.accepted == before + 1, "one try"
            assert CANARY not in str(caught.value)
    assert slowest < 20
    figures(f"{what}: AccessRefused after {slowest:.2f} s at most, and one connection")


@pytest.mark.limit(180)
def test_work_goes_on_over_tls(
    authority: Authority, broker: Broker, processes: Processes, figures: Callable[[str], None]
) -> None:
    """A sound certificate is trusted; and what is cut in between is made anew."""
    gate = processes.directory / "gate"
    with Proxy(broker.serve_tls(authority.signed("server"))) as proxy:
        url = broker.url(proxy.port, cafile=authority.cafile)
        # The last ones are for after the cut, however long it takes until then.
        held = {"number": 80, "file": str(gate)}
        processes.producer("singly", keys=[0, 100], pace=0.01, gate=held, url=url)
        processes.producer("batch", keys=[0, 3000], batch=1000, pace=0.1, url=url)
        processes.worker("worker", url=url, results=False, env={"SYNMANAGER_LEASE": "2"})
        for who in ("singly", "batch"):
            processes.await_event("ready", 30, who=who)
        processes.await_event("finished", 30, count=20)
        proxy.reset()
        cut = time.monotonic()
        gate.touch()
        keys = {f"singly-{n}" for n in range(100)} | {f"batch-{n}" for n in range(3000)}
        processes.await_done(keys, 120)
        for who in ("singly", "batch"):
            processes.await_event("left", 30, who=who)
    history = processes.history()
    history.check_nothing_lost()
    history.check_extra_runs()
    resumed = history.check_resumed(since=cut, within=10)
    assert set(history.confirmed) == keys
    figures(f"{len(keys):,} jobs over TLS; work again {resumed:.2f} s after a reset")
