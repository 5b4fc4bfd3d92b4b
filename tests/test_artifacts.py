"""The controller's cache is trusted only as far as its checksums reach."""

from __future__ import annotations

import hashlib
from pathlib import Path

from plugins.filter import artifacts


def write(folder: Path, name: str, content: bytes, checksum: str | None) -> str:
    """Write an artifact, and the checksum beside it where one is given."""
    (folder / name).write_bytes(content)
    if checksum is not None:
        (folder / f"{name}.sha256").write_text(f"{checksum}\n", encoding="utf-8")
    return str(folder / name)


def test_only_an_artifact_that_differs_from_its_checksum_is_corrupt(tmp_path: Path) -> None:
    """A whole artifact and a half-written one without a checksum are no fault; a changed or truncated one is."""
    whole = write(tmp_path, "a.deb", b"whole", hashlib.sha256(b"whole").hexdigest())
    changed = write(tmp_path, "b.deb", b"changed", hashlib.sha256(b"whole").hexdigest())
    empty = write(tmp_path, "c.deb", b"whole", "")
    partial = write(tmp_path, "d.deb", b"par", None)
    assert artifacts.corrupt_artifacts(str(tmp_path), "*.deb") == [changed, empty]
    assert [artifacts.artifact_is_cached(path) for path in (whole, partial)] == [True, False]


def test_a_missing_file_has_no_checksum(tmp_path: Path) -> None:
    """A file that is not there, or a cache that is not there, is no error."""
    assert artifacts.file_sha256(str(tmp_path / "missing")) == ""
    assert artifacts.corrupt_artifacts(str(tmp_path / "missing"), "*.deb") == []
