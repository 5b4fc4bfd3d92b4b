"""Which reasons of an inventory's exceptions are none."""

from __future__ import annotations

import pytest

from plugins.filter.reasons import unexplained


@pytest.mark.parametrize("reason", ["", " ", "why", "x y", "none -", None, 7, ["It is needed."]])
def test_what_explains_nothing(reason: object) -> None:
    assert unexplained({"b": reason, "a": reason, "good": "It is needed here."}) == ["a", "b"]
