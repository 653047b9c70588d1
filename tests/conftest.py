"""What the tests share."""

import signal

import pytest
import torch

from gradcam_lib import datasets


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


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_interrupts():
    """Processes of pytest-xdist ignore SIGINT, and so would the processes that the tests start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
