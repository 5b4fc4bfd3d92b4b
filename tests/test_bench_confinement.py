"""What the benchmark of the confinement reads out of other programs' words, and that it puts the firewall back."""

from __future__ import annotations

import subprocess

import pytest

from tools import bench, bench_confinement


def test_tasks_are_counted() -> None:
    """Each task and handler counts for its role, in the preflight too."""
    lines = (
        "TASK [access : Read] ***",
        "ok: [a]",
        "TASK [integrity : Ask] ***",
        "RUNNING HANDLER [access : Reload ssh] ***",
        "TASK [app : Read] ***",
    )
    said = "\n".join(lines)
    assert bench_confinement.tasks(said) == {"access": 2, "firewall": 0, "hardening": 0, "integrity": 1}


@pytest.mark.parametrize(("text", "value"), [("950us", 0.95), ("12.34ms", 12.34), ("1.02s", 1020), ("2m", 120000)])
def test_times_are_read(text: str, value: float) -> None:
    """Every unit that wrk writes is understood."""
    assert bench_confinement.milliseconds(text) == pytest.approx(value)


def test_load_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What wrk prints is read in each of its units, behind the shorter of which it puts a blank."""
    said = (
        "  Latency Distribution\n     50%  308.17ms\n     75%    1.00s \n     99%    1.02s \n  9 requests in 2s\nRequests/sec:      4.50\n"
    )
    monkeypatch.setattr(bench, "run", lambda words, timeout_seconds: subprocess.CompletedProcess(words, 0, said))
    assert bench.load("https://x.test", "cookie", 1, 1) == {"rate": "4.50", "p50": "308.17ms", "p99": "1.02s", "errors": "0"}


def test_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both states are measured equally often, their medians are compared, and the firewall is there in the end."""
    switched: list[bool] = []
    monkeypatch.setattr(bench_confinement, "_switch", lambda name, there: switched.append(there))
    found = "\n".join(bench_confinement.firewall("host", lambda: {"p99": "22ms" if switched[-1] else "20ms", "errors": "0"}))
    assert switched[:-1].count(True) == switched[:-1].count(False) == bench_confinement.ROUNDS
    assert switched[-1] is True
    assert "| **ratio** | **1.10** | |" in found
    assert "0 errors" in found
