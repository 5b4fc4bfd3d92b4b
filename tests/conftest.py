"""What all tests share: the marks of promises, which test_promises.py calls outside of their own folder."""

from __future__ import annotations

from files.promises.conftest import pytest_configure

__all__ = ["pytest_configure"]
