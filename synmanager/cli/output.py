"""What commands print: tables that fit the terminal, and JSON."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

__all__ = ["as_json", "json_option", "table"]

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    """Give a command ``--json``, and its function the argument ``as_json``."""
    option = click.option("--json", "in_json", is_flag=True, help="Print JSON, for machines.")
    return option(command)


def as_json(value: object) -> None:
    """Print a value on a line."""
    print(json.dumps(value))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None = None) -> str:
    """Columns, the first to the left and those of numbers to the right.

    Where the terminal is too narrow, each row becomes a paragraph. A pipe is as wide as it must.

    Args:
        width: of the terminal.
    """
    if width is None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    sizes = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    if sum(sizes) + 2 * (len(sizes) - 1) > width:
        return "\n".join(_paragraph(head, row) for row in rows)
    right = [
        index > 0 and all(_is_number(row[index]) for row in rows) for index in range(len(head))
    ]
    lines = []
    for row in (head, *rows):
        cells = (
            cell.rjust(size) if is_right else cell.ljust(size)
            for cell, size, is_right in zip(row, sizes, right, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _paragraph(head: Sequence[str], row: Sequence[str]) -> str:
    size = max(map(len, head[1:]), default=0)
    rest = (
        f"  {name:<{size}}  {cell}" for name, cell in zip(head[1:], row[1:], strict=True) if cell
    )
    return "\n".join((row[0], *rest))


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.replace(",", "").isdigit()
