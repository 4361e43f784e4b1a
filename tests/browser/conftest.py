"""Debian's Chromium, headless; and a dashboard for it to look at.

Without Chromium it says so and passes; with CI or SYNMANAGER_REQUIRE_BROWSER set it fails.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from dashboards import Site, serving
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from synmanager.journal import desk, marks
from synmanager.train import TrainProducerOperator

#: Where Debian, and others, put them.
BROWSERS, DRIVERS = ("chromium", "chromium-browser", "google-chrome"), ("chromedriver",)


_ARGUMENTS = (
    "headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars",
    "no-first-run", "disable-background-networking",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pictures", type=Path, help="a directory for the pictures of README and docs/dashboard.md"
    )


def _found(names: tuple[str, ...]) -> str | None:
    return next((path for name in names if (path := shutil.which(name))), None)


class Eyes:
    """A browser, and what a test wants of it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._command("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme: str) -> None:
        """Light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._command("Emulation.setEmulatedMedia", {"features": features})

    def picture(self, path: Path) -> None:
        self.driver.save_screenshot(str(path))

    def complaints(self) -> list[str]:
        """What the console said since the last time."""
        entries = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries]

    def run(self, script: str, *values: Any) -> Any:
        return self.driver.execute_script(script, *values)

    def text(self) -> str:
        return str(self.run("return document.body.innerText"))

    def _command(self, name: str, arguments: dict[str, Any]) -> None:
        self.driver.execute_cdp_cmd(name, arguments)


@pytest.fixture(scope="session")
def browser() -> Iterator[Eyes]:
    binary, driver = _found(BROWSERS), _found(DRIVERS)
    if binary is None or driver is None:
        reason = "no Chromium here: apt-get install chromium chromium-driver"
        if os.environ.get("CI") or os.environ.get("SYNMANAGER_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    options = Options()
    options.binary_location = binary
    for argument in _ARGUMENTS:
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(driver))
    made.set_page_load_timeout(30)
    yield Eyes(made)
    made.quit()


@pytest.fixture
def eyes(browser: Eyes) -> Iterator[Eyes]:
    """The browser as it is at first; nothing may have been complained of at the end."""
    browser.size(1280, 800)
    browser.prefer("light")
    yield browser
    complaints = browser.complaints()
    browser.driver.get("about:blank")
    assert complaints == []


@pytest.fixture
def trains(monkeypatch: pytest.MonkeyPatch) -> Iterator[TrainProducerOperator]:
    """A producer on a memory broker of the test's own."""
    monkeypatch.setenv("SYNMANAGER_JOURNAL", "on")
    monkeypatch.setattr(marks, "PATIENCE", 5.0)
    monkeypatch.setattr(desk, "PATIENCE", 5.0)
    with TrainProducerOperator(url=f"memory:///browser-{uuid4().hex}") as made:
        yield made


@pytest.fixture
def url(trains: TrainProducerOperator) -> str:
    session = trains._session
    assert session is not None
    return f"memory:///{session.backend.address.path}"


@pytest.fixture
def site(url: str) -> Iterator[Site]:
    with serving(url, allows=True) as made:
        made.until_caught_up()
        yield made


@pytest.fixture
def pictures(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Path]:
    """Where a picture of a name goes."""
    folder: Path = request.config.getoption("--pictures") or tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: folder / f"dashboard-{name}.png"
