"""What the tests share."""

import ctypes
import os
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from gradcam_lib import datasets

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Weights and pictures drawn by a test are the same in any order of the tests: what passes once, passes."""
    torch.manual_seed(0)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no folder of the user's."""
    monkeypatch.delenv("GRADCAM_DATA", raising=False)
    monkeypatch.setattr(datasets, "data_cache", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def one_thread():
    """Networks of the size of these tests run faster on one thread, and beside others far faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextmanager
def limited(what, value):
    before = resource.getrlimit(what)
    resource.setrlimit(what, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


@pytest.fixture
def full_disk():
    """`with full_disk(room):` no file grows beyond so many bytes, and writing fails half way, as on a full disk."""
    return lambda room: limited(resource.RLIMIT_FSIZE, room)


@pytest.fixture
def little_memory():
    """`with little_memory(room):` this process gets no more than so many bytes beyond what it has."""

    def within(room):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return limited(resource.RLIMIT_AS, pages * resource.getpagesize() + room)

    return within


@pytest.fixture
def unprivileged(tmp_path):
    """A folder, and meanwhile permissions hold for root too, who otherwise may read and write anything."""
    rights = (ctypes.c_uint32 * 6)()  # Linux: effective, permitted and inheritable, and another three
    if root := os.geteuid() == 0:
        libc, version = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
        assert libc.capget(version, rights) == 0
        before = rights[0]
        rights[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        assert libc.capset(version, rights) == 0
    yield tmp_path
    if root:
        rights[0] = before
        assert libc.capset(version, rights) == 0
    tmp_path.chmod(0o700)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_interrupts():
    """Processes of pytest-xdist ignore SIGINT, and so would the processes that the tests start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
