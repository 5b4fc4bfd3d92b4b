"""Files that are there as a whole, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from holdfast import durable


def test_replaced(tmp_path: Path) -> None:
    """A file is replaced with its permissions, and nothing else is left beside it."""
    path = tmp_path / "state.json"
    path.write_text("before")
    durable.write(path, b"after", 0o400)
    assert path.read_bytes() == b"after"
    assert path.stat().st_mode & 0o777 == 0o400
    assert list(tmp_path.iterdir()) == [path]


def test_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk has no room the file stays what it was, and no half of another is left."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "state.json"
    path.write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        durable.write(path, b"after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
