"""Fuzzing, guided by what is covered: `make fuzz`, or `PYTHONPATH=tests python -m fuzz TARGET… --seconds 600`.

Each target runs in a process of its own. What it finds lies in _build/fuzz/TARGET/found, the files that led to new
places in corpus beside it, from which the next run goes on. `--replay FILE` reads one file and shows what comes of it.
"""

import argparse
import contextlib
import os
import random
import re
import resource
import sys
import tempfile
import time
from pathlib import Path

import atheris

# PyTorch is left as it is: to instrument it takes forever.
READERS = ["PIL", "json", "tarfile", "zipfile"]
with atheris.instrument_imports(include=["gradcam_lib", *READERS]):
    from fuzz.formats import changed
    from fuzz.targets import TARGETS, Fault, checked

OUT = Path("_build/fuzz")
MEMORY = 2**30  # beyond what the process has when it begins
LONGEST = 20  # seconds that one file may take; a machine may be busy
LARGEST = 2**16  # bytes of a file


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=600, help="for all targets together")
    parser.add_argument("--replay", type=Path, help="a file that the target reads once")
    given = parser.parse_args()
    names = given.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"there is no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if given.replay:
        with tempfile.TemporaryDirectory() as folder:
            print(checked(names[0], given.replay.read_bytes(), Path(folder, "replayed")) or "It is read.")
        return 0
    faults = [fault for name in names for fault in fuzz(name, given.seconds / len(names))]
    print("\n".join(faults) or "Nothing was found.")
    return bool(faults)


def fuzz(name: str, seconds: float) -> list[str]:
    """Fuzz a target, say what was done, and return what was found."""
    here = OUT / name
    for folder in ("seeds", "corpus", "found"):
        (here / folder).mkdir(parents=True, exist_ok=True)
    for old in (here / "seeds").iterdir():
        old.unlink()
    for i, seed in enumerate(TARGETS[name].files()):
        (here / "seeds" / str(i)).write_bytes(seed)
    (here / "log").unlink(missing_ok=True)
    known, end = set((here / "found").iterdir()), time.monotonic() + seconds
    # A file that ends the process, by a crash or too much memory, is found; the next process goes on.
    while (left := round(end - time.monotonic())) > 0:
        if (child := os.fork()) == 0:
            run(name, here, left)
        if os.waitpid(child, 0)[1] == 0:
            break
    executions = sum(map(int, re.findall(r"stat::number_of_executed_units: *(\d+)", (here / "log").read_text())))
    found = sorted(set((here / "found").iterdir()) - known)
    print(f"{name:20} {executions:>8} files read, {len(list((here / 'corpus').iterdir())):>5} kept, {len(found)} found")
    return [str(file) for file in found]


def run(name: str, here: Path, seconds: int) -> None:
    """In a process of its own; does not return."""
    log = os.open(here / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2 * MEMORY, size + 2 * MEMORY))
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    seen = set()

    def one(data: bytes) -> None:
        try:
            checked(name, data, scratch / "file")
        except Fault as fault:  # kept, once for each place, and gone on from
            if fault.where not in seen:
                seen.add(fault.where)
                label = re.sub(r"[^\w.]+", "-", fault.where)
                with contextlib.suppress(FileExistsError), open(here / "found" / label, "xb") as file:
                    file.write(data)
                print(f"FOUND {label}: {fault}", flush=True)

    def mutator(data: bytes, size: int, seed: int) -> bytes:
        random_bytes = lambda part: atheris.Mutate(part, max(len(part) + 64, 64))  # noqa: E731
        return changed(data, random.Random(seed), random_bytes, TARGETS[name].folder)[:size]

    limits = [f"-max_total_time={seconds}", f"-timeout={LONGEST}", f"-rss_limit_mb={(resident + MEMORY) >> 20}"]
    limits += [f"-max_len={LARGEST}", f"-artifact_prefix={here}/found/", "-detect_leaks=0", "-print_final_stats=1"]
    places = [str(here / "corpus"), str(here / "seeds")]
    atheris.Setup(["fuzz", *limits, *places], one, custom_mutator=mutator)
    atheris.Fuzz()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
