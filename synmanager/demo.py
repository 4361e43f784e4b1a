"""A whole federated cycle in one process: a Director, some TTPs, and the queue between them."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass
from typing import Any

from synmanager.archiver import Archiver
from synmanager.backends.registry import create_backend
from synmanager.base import ConsumerOperator
from synmanager.completed import CompletedConsumerOperator
from synmanager.errors import ConfigurationError, SynmanagerError
from synmanager.evaluate import EvaluateConsumerOperator, EvaluateProducerOperator
from synmanager.phases import PHASES
from synmanager.preprocess import PreprocessConsumerOperator, PreprocessProducerOperator
from synmanager.settings import load_settings
from synmanager.terminal import complain
from synmanager.text import shown
from synmanager.train import TrainConsumerOperator, TrainProducerOperator
from synmanager.worker import Worker

__all__ = ["Demo"]

#: Seconds that each pretended job takes.
_WORK = {"align": 0.3, "train": 0.25, "evaluate": 0.1}

#: Seconds without any result after which the demo gives up.
_PATIENCE = 60.0


@dataclass(frozen=True)
class _Result:
    """One line of the Director's archive."""

    kind: str
    ttp: str
    waited: float
    worked: float


class Demo:
    """The cycle.

    Args:
        backend: a name or a URL, as in ``SYNMANAGER_BACKEND``; None for that.
        runs: training runs in the sweep.
        ttps: TTPs that share the work.
    """

    def __init__(self, backend: str | None, runs: int = 8, ttps: int = 2) -> None:
        self._url = backend
        self._runs = runs
        self._ttps = ttps
        self._project = f"demo-{uuid.uuid4().hex[:8]}"
        self._archive: list[_Result] = []
        self._expected = 1 + 2 * runs  # the alignment; each run, and its evaluation
        self._finished = threading.Event()
        self._failure: BaseException | None = None
        self._evaluations = EvaluateProducerOperator(url=backend)

    def run(self) -> None:
        """Run it, printing as it goes. However it ends, none of its jobs is left.

        Raises:
            ConfigurationError: there are other jobs in the queues; a pretended TTP must not
                take them.
        """
        self._refuse_real_jobs()
        began = time.monotonic()
        workers = [self._make_ttp(f"ttp-{number}") for number in range(1, self._ttps + 1)]
        archiver = Archiver(self._archive_result, url=self._url)
        services = [*workers, archiver]
        threads = [threading.Thread(target=self._serve, args=(s,), daemon=True) for s in services]
        with self._evaluations:
            self._submit()
            for thread in threads:
                thread.start()
            try:
                self._await_results()
            finally:
                for service in services:
                    service.stop()
                for thread in threads:
                    thread.join(timeout=10)
                self._sweep()
        self._summarise(time.monotonic() - began)

    def _submit(self) -> None:
        # The sweep first, the alignment last: the TTPs still begin with the alignment.
        with TrainProducerOperator(url=self._url) as sweep:
            sweep.submit_many(self._job("train", run) for run in range(self._runs))
        with PreprocessProducerOperator(url=self._url) as alignment:
            alignment.process(**self._job("align", 0))
        print(f"Director: submitted {self._runs} training runs, then 1 alignment ({self._project})")

    def _job(self, kind: str, run: int) -> dict[str, Any]:
        return {"project_id": self._project, "kind": kind, "run": run, "submitted": time.time()}

    def _make_ttp(self, name: str) -> Worker:
        def work(kwargs: dict[str, Any], host: str) -> dict[str, Any]:
            waited = time.time() - kwargs["submitted"]
            time.sleep(_WORK[kwargs["kind"]])
            return {**kwargs, "ttp": name, "waited": waited, "worked": _WORK[kwargs["kind"]]}

        return Worker({"preprocess": work, "train": work, "evaluate": work}, url=self._url)

    def _archive_result(self, kwargs: dict[str, Any], host: str) -> None:
        """The Director's side: keep the result, and have every trained model evaluated."""
        kind, run = kwargs["kind"], kwargs["run"]
        if kind == "train":
            self._evaluations.process(**self._job("evaluate", run))
        self._archive.append(_Result(kind, kwargs["ttp"], kwargs["waited"], kwargs["worked"]))
        what = f"{kwargs['ttp']}: {kind}{'' if kind == 'align' else f' run {run}'}"
        self._show(shown(what, 60))
        if len(self._archive) == self._expected:
            self._finished.set()

    def _show(self, text: str) -> None:
        done, width = len(self._archive), 24
        bar = "#" * (width * done // self._expected)
        count = f"{done:>{len(str(self._expected))}}/{self._expected}"
        try:
            print(f"[{bar:<{width}}] {count}  {text}", flush=True)
        except OSError as error:  # nobody reads: no failure of the job's, to be tried again
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._finished.set()

    def _serve(self, service: Worker | Archiver) -> None:
        try:
            service.run()
        except BaseException as error:
            self._fail(error)

    def _await_results(self) -> None:
        seen = -1
        while not self._finished.wait(_PATIENCE):
            if seen == len(self._archive):
                raise ConfigurationError(f"no result came within {_PATIENCE:g} s; giving up")
            seen = len(self._archive)
        if self._failure is not None:
            raise self._failure

    def _refuse_real_jobs(self) -> None:
        consumers: tuple[type[ConsumerOperator], ...] = (
            PreprocessConsumerOperator,
            TrainConsumerOperator,
            EvaluateConsumerOperator,
            CompletedConsumerOperator,
        )
        for kind in consumers:
            with kind(url=self._url) as consumer:
                waiting = consumer.check_message_count()
            if waiting:
                raise ConfigurationError(
                    f"{waiting} jobs wait in {consumer.queue!r}, and the demo's TTPs would take "
                    "them; run the demo on a broker, virtual host or database of its own"
                )

    def _sweep(self) -> None:
        """Remove what is left of this demo's jobs, where it was interrupted or has failed."""
        if self._finished.is_set() and self._failure is None:
            return
        mine = self._project.encode()
        backend = create_backend(load_settings(url=self._url).address)
        try:
            backend.open()
            for phase in PHASES.values():
                others = []
                while (delivery := backend.receive([phase.queue], 0)) is not None:
                    if mine in delivery.message.body:
                        backend.ack(delivery)
                    else:
                        others.append(delivery)
                for delivery in reversed(others):
                    backend.nack(delivery, count=False)
        except SynmanagerError as error:
            complain(f"synmanager: jobs of {self._project} are left: {shown(error)}")
        finally:
            backend.close()

    def _summarise(self, seconds: float) -> None:
        names = sorted({result.ttp for result in self._archive})
        head = f"{'phase':<12}{'jobs':>6}" + "".join(f"{name:>8}" for name in names)
        print(f"\n{head}{'mean wait':>12}{'work':>9}")
        for kind in _WORK:
            results = [result for result in self._archive if result.kind == kind]
            shares = (sum(result.ttp == name for result in results) for name in names)
            waited = sum(result.waited for result in results) / len(results)
            print(
                f"{kind:<12}{len(results):>6}"
                + "".join(f"{share:>8}" for share in shares)
                + f"{waited:>10.2f} s{sum(result.worked for result in results):>7.2f} s"
            )
        print(f"\n{len(self._archive)} results archived in {seconds:.1f} s; nothing lost.")
