"""Alembic's environment and the migrations; part of the package, so that the image can migrate by itself."""

from pathlib import Path


def revisions() -> list[str]:
    """Return the revisions that this release knows, oldest first.

    Read from the files' names (`<revision>_<what>.py`, numbered in order), because the web process asks too, and loading Alembic
    would cost it ten megabytes.
    """
    files = (Path(__file__).parent / "versions").glob("[0-9]*_*.py")
    return sorted(file.name.split("_", 1)[0] for file in files)
