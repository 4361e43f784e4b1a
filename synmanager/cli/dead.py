"""``synmanager dead``: what was given up, and how to mend it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from synmanager.backends.base import DeadLetter, QueueBackend
from synmanager.cli.broker import backend_option, connected, note
from synmanager.cli.output import as_json, json_option, table
from synmanager.cli.questions import agreed, yes_option
from synmanager.cli.queues import chosen, queue_options
from synmanager.errors import TopologyError, Undecodable
from synmanager.letters import by_reason, first_line, readable
from synmanager.message import decode, encode
from synmanager.text import quoted, shown
from synmanager.words import ago, moment, plural

__all__ = ["dead"]

Command = TypeVar("Command", bound=Callable[..., Any])

#: Letters of a queue that are looked at.
_MOST = 10_000

#: Lines of a traceback that are shown.
_END = 20

#: Characters of an id that may stand for all of it.
_LEAST_PREFIX = 4


@dataclass(frozen=True)
class _Chosen:
    """Which letters a command is about.

    Attributes:
        phases, subscribers: all queues' if both are empty.
        reason: a part of their reasons, in small letters; "" for any.
        ids: of theirs, or how these begin; any if empty.
    """

    phases: Sequence[str] = ()
    subscribers: Sequence[str] = ()
    reason: str = ""
    ids: Sequence[str] = ()

    @property
    def is_everything(self) -> bool:
        return not (self.phases or self.subscribers or self.reason or self.ids)

    def of(self, broker: QueueBackend) -> dict[str, list[DeadLetter]]:
        """The letters by their queues."""
        everywhere = not (self.phases or self.subscribers)
        known = broker.facts().queues if everywhere else None
        found: dict[str, list[DeadLetter]] = {}
        for queue in chosen(self.phases, self.subscribers, known):
            try:
                letters = broker.dead_letters(queue, _MOST)
            except TopologyError:  # it is not there yet, and so has none
                continue
            letters = [letter for letter in letters if self._is_meant(letter)]
            if letters:
                found[queue] = letters
        self._check_ids(found)
        return found

    def _is_meant(self, letter: DeadLetter) -> bool:
        own = letter.message.id
        return self.reason in letter.reason.lower() and (
            not self.ids or any(_stands_for(given, own) for given in self.ids)
        )

    def _check_ids(self, found: dict[str, list[DeadLetter]]) -> None:
        """Raises: click.ClickException: an id stands for no letter, or for several jobs'."""
        own = [(queue, letter.message.id) for queue, letters in found.items() for letter in letters]
        for given in self.ids:
            jobs = {each for each in own if _stands_for(given, each[1])}
            if any(each == given for _, each in jobs):
                continue
            if not jobs:
                raise click.ClickException(f"no dead letter has the id {quoted(given)}")
            if len(jobs) > 1:
                raise click.ClickException(
                    f"{len(jobs)} jobs have ids that begin with {quoted(given)}; give more of it"
                )


def _stands_for(given: str, own: str) -> bool:
    return own == given or (len(given) >= _LEAST_PREFIX and own.startswith(given))


def _choice(command: Command) -> Command:
    """Give a command the options that make a :class:`_Chosen`; ids are arguments."""
    reason = click.option(
        "--reason", default="", metavar="TEXT", help="Whose reason holds this text."
    )
    ids = click.argument("ids", nargs=-1, metavar="[ID ...]")
    return ids(queue_options(reason(command)))


def _settling(command: Command) -> Command:
    """Give a command the options that :func:`_settle` wants."""
    everything = click.option(
        "--all", "everything", is_flag=True, help="Every letter of every queue."
    )
    return _choice(everything(backend_option(json_option(yes_option(command)))))


@contextmanager
def _letters(
    backend: str | None, which: _Chosen
) -> Iterator[tuple[QueueBackend, dict[str, list[DeadLetter]]]]:
    with connected(backend) as broker:
        yield broker, which.of(broker)


@click.group()
def dead() -> None:
    """See and mend what was given up.

    A job becomes a dead letter after its last attempt, when its callback rejects it, and when it
    cannot be read. An ID may be shortened to its first characters.

    \b
    examples:
      synmanager dead list                        all, by reason
      synmanager dead show 17f8fd                 one, with its traceback
      synmanager dead edit 17f8fd                 change its job in $EDITOR
      synmanager dead redrive 17f8fd              run it again
      synmanager dead redrive --reason "CUDA out of memory"
      synmanager dead purge --phase evaluate
    """


@dead.command("list")
@_choice
@click.option("--each", is_flag=True, help="Every letter, not by reason.")
@backend_option
@json_option
def list_(backend: str | None, in_json: bool, each: bool, **which: Any) -> None:
    """List dead letters, by queue and reason.

    \b
    examples:
      synmanager dead list
      synmanager dead list --phase train --each
      synmanager dead list --reason timeout --json
    """
    with _letters(backend, _made_of(which)) as (_, found):
        letters = [letter for some in found.values() for letter in some]
    if in_json:
        as_json([_as_dict(letter) for letter in letters])
    elif not letters:
        print("no dead letters")
    elif each:
        rows = [
            (
                shown(a.message.id, 40),
                a.queue,
                str(a.attempts),
                ago(a.died_at),
                first_line(a.reason),
            )
            for a in letters
        ]
        print(table(("id", "queue", "attempts", "died", "reason"), rows))
    else:
        print(_by_reason(letters))


@dead.command()
@click.argument("letter_id", metavar="ID")
@queue_options
@click.option("--full", is_flag=True, help="All of the traceback that is kept, and of the body.")
@backend_option
@json_option
def show(letter_id: str, backend: str | None, in_json: bool, full: bool, **which: Any) -> None:
    """Show a dead letter: its job, its attempts, when, where and why it died.

    \b
    examples:
      synmanager dead show 17f8fd32f589706037ad0056233835e9
      synmanager dead show 17f8 --full
    """
    with _letters(backend, _made_of({**which, "ids": [letter_id]})) as (_, found):
        letters = [letter for some in found.values() for letter in some]
    if in_json:
        as_json([_as_dict(letter) for letter in letters])
        return
    for letter in letters:
        print(_in_full(letter, full))


@dead.command()
@click.argument("letter_id", metavar="ID")
@queue_options
@click.option("--job", metavar="JSON", help="Instead of $EDITOR.")
@click.option("--redrive", is_flag=True, help="And put it back into its queue.")
@backend_option
@json_option
def edit(
    letter_id: str,
    backend: str | None,
    job: str | None,
    redrive: bool,
    in_json: bool,
    **which: Any,
) -> None:
    """Change the job of a dead letter where it lies.

    It keeps its id, its rank, its reason and its traceback. Killed in between, it is there in the
    old form or the new one, on some brokers in both.

    \b
    examples:
      synmanager dead edit 17f8fd
      synmanager dead edit 17f8fd --job '{"run": 1, "lr": 0.01}' --redrive
    """
    with _letters(backend, _made_of({**which, "ids": [letter_id]})) as (broker, found):
        ((queue, letters), *others) = found.items()
        if others or len(letters) > 1:
            raise click.ClickException(
                f"several letters have this id, in {', '.join(found)}; name --phase, or redrive "
                "or purge them"
            )
        message = letters[0].message
        before = readable(message.body)
        text = job if job is not None else click.edit(before, extension=".json")
        if text is None or (job is None and text.strip() == before.strip()):
            raise click.ClickException("nothing was changed")
        body, at = encode(_parsed(text)), time.time()
        if not broker.edit_letter(queue, message.id, body):
            raise click.ClickException("the letter has gone meanwhile")
        back = 0
        try:
            if redrive:
                back = broker.redrive_letters(queue, [message.id])
        finally:  # it is changed, whatever has become of the rest
            note(broker, backend, "edit", at, 1, [message.id], queue=queue, redriven=back)
    if in_json:
        as_json({"id": message.id, "queue": queue, "redriven": bool(back)})
    else:
        print(f"{shown(message.id)} changed{f', and back in {queue}' if back else ''}")
    if redrive and not back:
        raise click.ClickException(f"it stays dead: a job of its id is in {queue} already")


@dead.command()
@_settling
def redrive(backend: str | None, in_json: bool, everything: bool, yes: bool, **which: Any) -> None:
    """Put dead letters back into their queues, to be run again.

    Their attempts count anew. One whose id is queued again stays, where the broker tells ids
    apart.

    \b
    examples:
      synmanager dead redrive 17f8fd 6292
      synmanager dead redrive --phase train --reason timeout
      synmanager dead redrive --all --yes
    """
    _settle(backend, _made_of(which), in_json, everything, yes, again=True)


@dead.command()
@_settling
def purge(backend: str | None, in_json: bool, everything: bool, yes: bool, **which: Any) -> None:
    """Remove dead letters for good.

    \b
    examples:
      synmanager dead purge 17f8fd
      synmanager dead purge --reason "no such project" --yes
    """
    _settle(backend, _made_of(which), in_json, everything, yes, again=False)


def _settle(
    backend: str | None, which: _Chosen, in_json: bool, everything: bool, yes: bool, *, again: bool
) -> None:
    """Put some letters back, or remove them."""
    if which.is_everything != everything:
        click.get_current_context().fail(
            "say which by ID, --phase, --subscriber or --reason; or --all"
        )
    done: dict[str, int] = {}
    with _letters(backend, which) as (broker, found):
        number = sum(map(len, found.values()))
        if number:
            if not in_json:
                print(_by_reason([each for some in found.values() for each in some]))
            what = "Put back" if again else "Remove for good"
            agreed(f"{what} {plural(number, 'dead letter')}?", yes)
        for queue, letters in found.items():
            ids, at = {letter.message.id for letter in letters}, time.time()
            settle = broker.redrive_letters if again else broker.purge_letters
            done[queue] = settle(queue, ids)
            note(
                broker, backend, "redrive" if again else "purge", at, done[queue], ids, queue=queue
            )
    total = sum(done.values())
    if in_json:
        as_json({"redriven" if again else "removed": done})
        return
    print(f"{plural(total, 'dead letter')} {'put back' if again else 'removed'}")
    if again and total < number:
        print(f"{number - total:,} stay: jobs of their ids are queued again")


def _made_of(options: dict[str, Any]) -> _Chosen:
    return _Chosen(
        options["phases"],
        options["subscribers"],
        options.get("reason", "").lower(),
        options.get("ids", ()),
    )


def _by_reason(letters: Sequence[DeadLetter]) -> str:
    """A row for each queue and reason, the most frequent first."""
    rows = [
        (
            queue,
            f"{len(some):,}",
            ago(max(each.died_at for each in some)),
            shown(some[-1].message.id, 12),
            reason,
        )
        for (queue, reason), some in by_reason(letters).items()
    ]
    return table(("queue", "letters", "last", "its id", "reason"), rows)


def _as_dict(letter: DeadLetter) -> dict[str, Any]:
    message = letter.message
    try:
        job: Any = decode(message.body)
    except Undecodable:
        job = None
    return {
        "id": message.id,
        "queue": letter.queue,
        "priority": message.rank.name.lower(),
        "submitted_at": message.submitted_at,
        "died_at": letter.died_at,
        "attempts": letter.attempts,
        "reason": letter.reason,
        "traceback": letter.traceback,
        "job": job,
        "body": None if job is not None else message.body.decode("utf-8", "backslashreplace"),
    }


def _in_full(letter: DeadLetter, full: bool) -> str:
    message = letter.message
    facts = (
        ("id", shown(message.id)),
        ("queue", letter.queue),
        ("priority", message.rank.name.lower()),
        ("attempts", str(letter.attempts)),
        ("submitted", moment(message.submitted_at)),
        ("died", f"{moment(letter.died_at)}  {ago(letter.died_at)}"),
        ("reason", shown(letter.reason, 2000)),
    )
    lines = [f"{name:<10} {text}".rstrip() for name, text in facts if text]
    lines += [f"{name:<10} {shown(text)}" for name, text in message.headers.items()]
    body = readable(message.body).splitlines()
    lines += ["job", *(f"  {shown(line, 10_000)}" for line in (body if full else body[:100]))]
    trace = letter.traceback.rstrip().splitlines()
    if trace:
        lines.append("traceback" if full or len(trace) <= _END else f"traceback, the last {_END}")
        lines += [f"  {shown(line, 500)}" for line in (trace if full else trace[-_END:])]
    return "\n".join(lines)


def _parsed(text: str) -> dict[str, Any]:
    try:
        return decode(text.encode("utf-8", "surrogatepass"))
    except Undecodable as error:
        raise click.ClickException(f"{error}; nothing was changed") from None
