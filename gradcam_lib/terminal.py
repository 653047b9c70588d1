"""What the command line prints: results on standard output, for people or as JSON; all else on standard error."""

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

Item = TypeVar("Item")

__all__ = ["results", "say", "show", "table", "with_bar"]

results = Console(markup=False, emoji=False, highlight=False)
WIDE = 200  # columns of a file, which has no edge


def say(message: object) -> None:
    print(f"gradcam-lib: {message}", file=sys.stderr)


def show(as_json: bool, data: object, *texts: object) -> None:
    """A result: `data` as one JSON document, or `texts`, as people read it."""
    if as_json:
        print(json.dumps(plain(data), indent=2), file=results.file)
        return
    for text in texts:
        results.print(text, width=None if results.is_terminal else WIDE, soft_wrap=isinstance(text, str))


def plain(value: object) -> object:
    """What JSON has words for: no NaN or infinity, nothing of NumPy."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, int | str) else str(value)


def table(rows: Sequence[Mapping[str, object]]) -> Table:
    """A row each, a column for each key."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name, value in rows[0].items() if rows else ():
        made.add_column(name, overflow="fold", justify="right" if isinstance(value, int | float) else "left")
    for row in rows:
        made.add_row(*map(cell, row.values()))
    return made


def cell(value: object) -> str:
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def with_bar(items: Iterable[Item], total: int, title: str, as_json: bool) -> Iterator[Item]:
    """The items, and a bar where there is a terminal: the one of the results if it can be, so that they go above it."""
    console = results if results.is_terminal and not as_json else Console(stderr=True)
    columns = TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield from bar.track(items, total=total)
