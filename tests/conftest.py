"""What the tests share."""

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
