"""Locks on folders: their holder keeps others out until it ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from holdfast.failure import Failure


@contextmanager
def alone(folder: Path, refusal: str) -> Iterator[None]:
    """Refuse to run beside another holder of a folder's lock.

    Raises:
        Failure: one is there; the refusal is its text.
    """
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Failure(refusal) from error
        yield
    finally:
        os.close(opened)


def held(folder: Path) -> bool:
    """Say whether somebody keeps others waiting with a folder's lock."""
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(opened)
    return False
