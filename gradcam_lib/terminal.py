"""What the command line prints: results on standard output, for people or as JSON; all else on standard error."""

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

Item = TypeVar("Item")

__all__ = ["results", "say", "show", "table", "with_bar"]

# A file has no edge, unless one is asked for.
WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
results = Console(markup=False, emoji=False, highlight=False, width=WIDTH)


def say(message: object) -> None:
    print(f"gradcam-lib: {message}", file=sys.stderr)


def show(as_json: bool, data: object, *texts: object) -> None:
    """A result: `data` as one JSON document, or `texts`, as people read it."""
    if as_json:
        print(json.dumps(plain(data), indent=2), file=results.file)
        return
    for text in texts:
        with results.capture() as printed:
            results.print(text, soft_wrap=isinstance(text, str))
        for line in printed.get().splitlines():  # a table fills them up with spaces
            print(line.rstrip(), file=results.file)


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
    """A row each, a column for each key; the fractions of a column have the same number of digits."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name, value in rows[0].items() if rows else ():
        right = isinstance(value, int | float) or (isinstance(value, str) and value.endswith(" %"))
        made.add_column(name.replace("_", " "), overflow="fold", justify="right" if right else "left")
    digits = {
        name: max((decimals(value) for row in rows if isinstance(value := row[name], float)), default=0)
        for name in (rows[0] if rows else ())
    }
    for row in rows:
        made.add_row(*(cell(value, digits[name]) for name, value in row.items()))
    return made


def decimals(value: float) -> int:
    """Of four digits, how many stand behind the point."""
    return len(f"{value:.4g}".partition(".")[2]) if 1e-4 <= abs(value) < 1e6 else 0


def cell(value: object, digits: int = 0) -> str:
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{digits}f}" if value == 0 or 1e-4 <= abs(value) < 1e6 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def percent(share: float, digits: int = 1) -> str:
    return "" if share != share else f"{share:.{digits}%}".replace("%", " %")


def with_bar(items: Iterable[Item], total: int, title: str, as_json: bool) -> Iterator[Item]:
    """The items, and a bar where there is a terminal: the one of the results if it can be, so that they go above it."""
    console = results if results.is_terminal and not as_json else Console(stderr=True)
    columns = TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield from bar.track(items, total=total)
