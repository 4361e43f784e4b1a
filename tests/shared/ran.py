"""What the tests ran on, noted for README.md's table of versions.

With ``SYNMANAGER_TEST_RAN`` set to a file's name, every run that passes adds to that file a line
such as "RabbitMQ 4.3.6" for each; ``scripts/tested-on`` makes the table of it.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["keep", "note"]

_FILE = os.environ.get("SYNMANAGER_TEST_RAN")

_noted = {f"{platform.python_implementation()} {platform.python_version()}"}


def note(product: str, version: str) -> None:
    """Note that a test has met this version, by the product's own answer."""
    _noted.add(f"{product} {version}")


def keep() -> None:
    """Write down what was noted, if anybody wants it. Several processes may share the file."""
    if _FILE:
        with Path(_FILE).open("a") as file:
            file.write("".join(f"{line}\n" for line in sorted(_noted)))
