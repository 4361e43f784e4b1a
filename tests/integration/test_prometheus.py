"""A real Prometheus scrapes a real worker's broker; its tool checks what docs/monitoring/ holds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import marathon
import pytest
from containers import no_broker, run
from ports import free_port
from threads import until

from synmanager.train import TrainProducerOperator

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"

#: Within which a server that was just started answers, on a busy machine.
SOON = 45.0

CONFIG = """
global: {scrape_interval: 1s, evaluation_interval: 1s}
scrape_configs:
  - job_name: synmanager
    static_configs: [{targets: ["%s"]}]
rule_files: ["%s"]
"""


def tool(name: str) -> str:
    """A command of Debian's package prometheus."""
    found = shutil.which(name)
    if found is None:
        no_broker(f"there is no {name}: apt-get install prometheus")
    return found


@contextmanager
def program(*command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def answer(url: str, **parameters: str) -> str:
    query = f"?{urlencode(parameters)}" if parameters else ""
    with urlopen(url + query, timeout=10) as found:
        return str(found.read().decode())


class Prometheus:
    """A running server, asked over its API."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def is_ready(self) -> bool:
        try:
            return "Ready" in answer(f"{self._url}/-/ready")
        except OSError:
            return False

    def query(self, expression: str) -> list[float]:
        told = json.loads(answer(f"{self._url}/api/v1/query", query=expression))
        assert told["status"] == "success"
        return [float(found["value"][1]) for found in told["data"]["result"]]

    def until(self, expression: str, wanted: float) -> None:
        until(lambda: self.query(expression) == [wanted], f"{expression} is {wanted}", SOON)


def expressions() -> list[str]:
    """What the dashboard asks for."""
    panels = json.loads((MONITORING / "grafana.json").read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(found) > 15
    return found


def wanted_workers() -> str:
    """What docs/scaling.md has KEDA ask."""
    (found,) = re.findall(r"^ +query: (.+)$", (MONITORING.parent / "scaling.md").read_text(), re.M)
    return str(found)


def names(text: str) -> set[str]:
    return set(re.findall(r"\bsynmanager_\w+", text))


def test_the_alert_rules_and_when_they_fire() -> None:
    promtool = tool("promtool")
    for command in (
        ("check", "config", str(MONITORING / "prometheus.yml")),
        ("check", "rules", str(MONITORING / "alerts.yml")),
        ("test", "rules", str(Path(__file__).with_name("alerts.yml"))),
    ):
        done = run(promtool, *command)
        assert done.returncode == 0, done.stdout
        assert "SUCCESS" in done.stdout


def test_a_real_prometheus_scrapes_a_real_worker(tmp_path: Path) -> None:
    promtool, prometheus = tool("promtool"), tool("prometheus")
    broker = {
        "SYNMANAGER_BACKEND": f"sqlite:///{tmp_path}/jobs.db",
        "SYNMANAGER_JOURNAL": "on",
        "SYNMANAGER_GRACE": "0",
    }
    synmanager = (sys.executable, "-m", "synmanager")
    with program(*synmanager, "exporter", "--port", "0", **broker) as exporter:
        assert exporter.stdout is not None
        metrics = exporter.stdout.readline().strip()
        target = metrics.removeprefix("http://").removesuffix("/metrics")
        config, port = tmp_path / "prometheus.yml", free_port()
        config.write_text(CONFIG % (target, MONITORING / "alerts.yml"))
        with (
            program(
                prometheus, f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ),
            program(sys.executable, marathon.__file__, "site-a", **broker),
            pytest.MonkeyPatch.context() as environment,
        ):  # fmt: skip
            for name, value in broker.items():
                environment.setenv(name, value)
            server = Prometheus(port)
            until(server.is_ready, "Prometheus is ready", SOON)
            with TrainProducerOperator() as producer:
                producer.submit({"poison": True}, priority="high")
                producer.submit({"steps": 2})
                producer.submit({"steps": 100_000})
                producer.submit({"steps": 1}, priority="low")
                server.until('synmanager_workers{state="busy"}', 1)
                server.until('synmanager_ready_jobs{phase="train",rank="low"}', 1)
            server.until(wanted_workers(), 2)  # one runs, one waits
            server.until('synmanager_jobs{phase="train",state="dead"}', 1)
            server.until(
                'synmanager_job_running_seconds_count{phase="train",outcome="succeeded"}', 1
            )
            server.until('count(ALERTS{alertname="SynmanagerDeadLetters"})', 1)
            text = answer(metrics)
            for expression in expressions():
                expression = expression.replace("$instance", ".*")
                expression = expression.replace("$__rate_interval", "1m")
                server.query(expression)
                assert names(expression) <= names(text), expression
            alerts = (MONITORING / "alerts.yml").read_text()
            assert names(alerts) <= names(text)
    checked: Any = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
