"""A Director's archive: notes every result.

Config:
    subscriber: its name; by default none.
"""

from __future__ import annotations

from typing import Any

from program import begin

from synmanager import Archiver, current_job

config, journal = begin()


def archive(**result: Any) -> None:
    job = current_job()
    assert job is not None
    journal.write("archived", key=result.get("key"), result_id=job.id, attempt=job.attempt)


journal.write("ready")
Archiver(archive, config.get("subscriber")).run()
journal.write("left")
