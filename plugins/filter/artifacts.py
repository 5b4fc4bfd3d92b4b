"""Tell whether what the controller keeps of earlier builds is what was built."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def file_sha256(path: str) -> str:
    """Return the SHA-256 of a file on the controller in hexadecimal digits, or an empty string where there is none."""
    file = Path(path)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def artifact_is_cached(path: str) -> bool:
    """Say whether an artifact and the `.sha256` beside it are there; that file is written last, so it says that the artifact is whole."""
    return Path(path).is_file() and Path(f"{path}.sha256").is_file()


def corrupt_artifacts(folder: str, pattern: str) -> list[str]:
    """Return the paths of the artifacts of a folder, by glob, that are not what the `.sha256` beside them says."""
    return [
        str(path)
        for path in sorted(Path(folder).glob(pattern))
        if artifact_is_cached(str(path)) and Path(f"{path}.sha256").read_text(encoding="utf-8").split()[:1] != [file_sha256(str(path))]
    ]


class FilterModule:
    """Filters that Ansible finds."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"artifact_is_cached": artifact_is_cached, "corrupt_artifacts": corrupt_artifacts, "file_sha256": file_sha256}
