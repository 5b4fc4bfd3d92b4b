"""Files that are there as a whole, or not at all, whatever happens to the host meanwhile."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file, once its content is on the disk itself.

    Args:
        path: the file, in a folder that is there.
        content: what it holds.
        mode: its permissions.

    Raises:
        OSError: the disk is full, or the folder can't be written.
    """
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        fresh = Path(file.name)
        try:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        except OSError:
            fresh.unlink()
            raise
    fresh.replace(path)
