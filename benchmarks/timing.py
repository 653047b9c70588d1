"""Measuring several ways of one thing side by side: in turn, round after round, so that all meet the same machine."""

import time
from collections.abc import Callable
from statistics import median


def in_turn(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of the figures that each way returns: one round to warm up, then all in turn, `rounds` times."""
    figures = {name: [] for name in ways}
    for n in range(rounds + 1):
        for name, way in ways.items():
            figure = way()
            if n:
                figures[name].append(figure)
    return {name: median(values) for name, values in figures.items()}


def interleaved(jobs: dict[str, Callable], rounds: int, clock: Callable[[], float] = time.perf_counter):
    """The median seconds of each job, by the clock, in the same way."""

    def seconds(run):
        start = clock()
        run()
        return clock() - start

    return in_turn({name: lambda run=run: seconds(run) for name, run in jobs.items()}, rounds)
