"""What a machine may refuse, said in one sentence and with what to do: memory, and room for a file."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

__all__ = ["cannot_write", "disk_is_full", "enough_memory", "first_line", "out_of_memory", "writing"]

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Say in one sentence what keeps a file or folder from being written: OSError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{place} could not be written ({getattr(error, 'strerror', None) or error}). What was written before is "
            "whole: make room, or choose a place that can be written to, and run the same again."
        ) from error


def disk_is_full(error: Exception) -> bool:
    """NumPy says it in words alone."""
    return getattr(error, "errno", None) in FULL or bool(re.search(r"requested and \d+ written", str(error)))


def cannot_write(error: Exception) -> bool:
    """Whether an error of making a file says that this is no place for it, or that the disk is full."""
    no_place = PermissionError | FileExistsError | NotADirectoryError
    return disk_is_full(error) or isinstance(error, no_place) or getattr(error, "errno", None) == errno.EROFS


@contextmanager
def enough_memory(remedy: str) -> Iterator[None]:
    """Where memory runs out, on whatever device, say what would need less: torch.OutOfMemoryError.

    remedy  a clause, such as "explain fewer images at once"
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(f"There is not enough memory: {remedy}. (PyTorch: {first_line(error)})") from error


def out_of_memory(error: Exception) -> bool:
    """Only GPUs of Nvidia have a kind of error for it; a CPU says so in words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(
        re.search("out of memory|not enough memory|can't allocate memory|bad_alloc", str(error))
    )


def first_line(error: Exception) -> str:
    """Errors of PyTorch may go on for pages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
