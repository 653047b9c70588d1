"""What the tests share."""

import pytest

from gradcam_lib import datasets


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no folder of the user's."""
    monkeypatch.delenv("GRADCAM_DATA", raising=False)
    monkeypatch.setattr(datasets, "data_cache", lambda: tmp_path / "cache")
    return tmp_path / "cache"
