"""What the benchmark reads out of the figures that the scenario of a lost host leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import bench_rebuild
from tools.shell import Failure


def test_figures_become_a_section(tmp_path: Path) -> None:
    """Each figure is a row, and the whole rebuild's stands out."""
    file = tmp_path / "rebuild.tsv"
    file.write_text(f"host, s\t200.5\n{bench_rebuild.WHOLE}\t280\n", encoding="utf-8")
    section = bench_rebuild.report(bench_rebuild.read(file))
    assert "| host, s | 200.5 |" in section
    assert f"| **{bench_rebuild.WHOLE}** | **280** |" in section


def test_rebuild_without_an_end_is_no_figure(tmp_path: Path) -> None:
    """A scenario that left only a part of its figures is told, not recorded."""
    file = tmp_path / "rebuild.tsv"
    file.write_text("host, s\t200.5\n", encoding="utf-8")
    with pytest.raises(Failure, match="left no seconds of its rebuild"):
        bench_rebuild.read(file)
