"""What the tests of joining share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own: a record that lies there spares a check."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(folder))
    return folder
