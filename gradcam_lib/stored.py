"""Files that a disk may have harmed, or somebody else made: whatever is wrong with one, one kind of error says it.

The libraries that read them raise nearly anything of a damaged file, and some of that is only met when its values are
used. So what is read is also held against what is expected, here or by whoever reads.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["names", "printable", "read_array", "read_json", "reading"]


@contextmanager
def reading(damaged: Callable[[str], Exception]) -> Iterator[None]:
    """Whatever goes wrong while a file is read becomes one error.

    damaged  makes it from what is wrong, which is given in one line
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they repeat what the errors say
            yield
    except Exception as error:  # of a damaged file: anything
        what = f"it does not say its {error}" if isinstance(error, KeyError) else str(error)
        raise damaged(printable(" ".join(what.split())[:300]) or type(error).__name__) from error


def printable(text: str) -> str:
    """A text that can be printed: line feeds, and bytes that are no UTF-8, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def read_json(text: str | bytes | Path) -> dict[str, Any]:
    """What a JSON text says, or a file of it, which must be named values."""
    said = json.loads(text.read_bytes() if isinstance(text, Path) else text)
    if not isinstance(said, dict):
        raise ValueError(f"its JSON is a {type(said).__name__}, not named values")
    return said


def read_array(file: Path, *, mapped: bool = False) -> np.ndarray:
    """The array in an .npy file; never unpickled. Mapped, it is read when it is used."""
    if mapped:
        return np.lib.format.open_memmap(file, mode="r")
    with open(file, "rb") as opened:  # np.load would also take an .npz, and give something else
        array: np.ndarray = np.lib.format.read_array(opened, allow_pickle=False)
        return array


def names(value: object) -> tuple[str, ...]:
    """Names of classes, as JSON gives them."""
    if not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise ValueError("its classes are not a list of names")
    return tuple(value)
