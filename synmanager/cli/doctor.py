"""``synmanager doctor``."""

from __future__ import annotations

import click

from synmanager.checks import Finding, Severity, findings, look
from synmanager.cli.broker import backend_option, connected, tell
from synmanager.cli.output import as_json, json_option
from synmanager.errors import SynmanagerError
from synmanager.settings import load_settings
from synmanager.text import shown

__all__ = ["doctor"]

_STATUS = {Severity.WARNING: 3, Severity.DANGER: 4}

_WORDS = {Severity.NOTE: "note", Severity.WARNING: "may hurt", Severity.DANGER: "DANGER"}


@click.command()
@backend_option
@click.option(
    "--longest-job",
    type=click.FloatRange(0, min_open=True),
    default=24.0,
    show_default=True,
    metavar="HOURS",
    help="That any of your jobs takes.",
)
@json_option
def doctor(backend: str | None, longest_job: float, in_json: bool) -> int:
    """Say what would hurt on a broker, and what to do about it.

    Nothing is changed. Where the broker has a guest, it tries whether guest can log in from the
    network. Exits with 0 if nothing hurts, 3 if something may, and 4 if jobs may be lost or
    nothing can run.

    \b
    examples:
      synmanager doctor
      synmanager doctor --backend amqp://mq.example/ --longest-job 72
      synmanager doctor --json | jq '.[] | select(.severity == "danger")'
    """
    settings = load_settings(url=backend)
    tell(settings.address)
    what, found = _examine(backend, longest_job * 3600)
    worst = found[0].severity if found else Severity.NOTE
    if in_json:
        as_json([finding.as_dict() for finding in found])
        return _STATUS.get(worst, 0)
    if what:
        print(what)
    for finding in found:
        print(f"\n{_WORDS[finding.severity]}: {shown(finding.what, 2000)}")
        if finding.remedy:
            print(f"  {shown(finding.remedy, 2000)}")
    if worst < Severity.WARNING:
        print("\nnothing hurts")
    return _STATUS.get(worst, 0)


def _examine(url: str | None, longest_job: float) -> tuple[str, list[Finding]]:
    """What the broker is, and what was found."""
    import logging

    # What a driver would warn of is found here, and said with what to do.
    logging.getLogger("synmanager").setLevel(logging.ERROR)
    try:
        with connected(url, say=False) as broker:
            seen = look(broker, longest_job)
    except SynmanagerError as error:
        remedy = "Nothing can run before that is mended."
        return "", [Finding(Severity.DANGER, str(error), remedy)]
    finally:
        logging.getLogger("synmanager").setLevel(logging.NOTSET)
    facts = seen.facts
    return f"{facts.product} {facts.version}".strip(), findings(seen)
