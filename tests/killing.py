"""Processes that are killed, and what is then in their folders: for the tests of every module that writes files."""

import hashlib
import multiprocessing
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm


class NoFork:
    def __getattr__(self, name):
        pytest.skip("processes cannot be forked here")


# A forked child has PyTorch from its parent, and need not import it.
fork = multiprocessing.get_context("fork") if "fork" in multiprocessing.get_all_start_methods() else NoFork()


def in_child(job, *arguments, kill_after=None) -> int:
    """Exit code of a forked process that does a job, with SIGKILL after so many seconds unless it has ended."""
    child = fork.Process(target=_begin, args=(job, *arguments))
    child.start()
    if kill_after is not None:
        child.join(kill_after)
        child.kill()
    child.join()
    code = child.exitcode
    child.close()
    return code


def _begin(job, *arguments) -> None:
    # A lock of its own: that of tqdm is shared by forked processes, and one that is killed would leave it locked.
    tqdm.set_lock(threading.RLock())
    job(*arguments)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder at any depth, hidden ones too, by its path in it."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


class Kills:
    """Kill a run again and again, and hold what a plain second run makes of it against what an unbroken one makes.

    run       of a folder, with `kill_after=` seconds or without: its exit code
    root      where the folders are made
    contents  of a folder: what has to be the same
    """

    def __init__(self, run: Callable, root: Path, seed: int, contents: Callable = digests):
        self.run, self.root, self.contents, self.seed = run, root, contents, seed
        self.random, self.count = np.random.default_rng(seed), Counter()
        self.seconds = []  # that unbroken runs took
        self.expected = self._unbroken(self._new())
        assert self._unbroken(self._new()) == self.expected, "two unbroken runs differ"

    def _new(self) -> Path:
        self.count["folders"] += 1
        (folder := self.root / str(self.count["folders"])).mkdir(parents=True)
        return folder

    def _unbroken(self, folder: Path) -> dict:
        began = time.monotonic()
        assert self.run(folder) == 0
        self.seconds.append(time.monotonic() - began)
        return self.contents(folder)

    def _again(self, folder: Path) -> None:
        """A plain run, to the end."""
        assert self.run(folder) == 0
        assert self.contents(folder) == self.expected
        shutil.rmtree(folder)

    def _kill(self, folder: Path) -> bool:
        """Whether the run was killed, at a moment drawn from the time that it takes; else it had ended before."""
        began, new = time.monotonic(), not any(folder.iterdir())
        code = self.run(folder, kill_after=self.random.uniform(0, np.median(self.seconds)))
        if code == 0:
            self.count["too late"] += 1
            if new:  # beside other work it takes now more, now less
                self.seconds.append(time.monotonic() - began)
            return False
        assert code == -signal.SIGKILL
        found = self.contents(folder)
        begun = any(not name.endswith(".lock") for name in found)
        self.count["after" if found == self.expected else "during" if begun else "before"] += 1
        return True

    def each_then_again(self, number: int) -> None:
        """So many times: kill a run in a new folder, and run it again to its end."""
        while number:
            folder = self._new()
            number -= self._kill(folder)
            self._again(folder)

    def in_a_row(self, number: int) -> None:
        """Kill so many runs in one folder, one after the other, then run it again to its end; more of these, if it
        comes to its end on the way."""
        folder = self._new()
        while number:
            if self._kill(folder):
                number -= 1
            else:
                self._again(folder)
                folder = self._new()
        self._again(folder)

    def __str__(self):
        before, during, after, late = (self.count[name] for name in ("before", "during", "after", "too late"))
        return (
            f"{before + during + after} killed: {before} before the first file, {during} half way, {after} with all "
            f"files there ({late} more came too late); {len(self.expected)} files the same; seed {self.seed}, "
            f"{np.median(self.seconds):.1f} s unbroken"
        )
