"""`make test`: everything that proves the repository, in the order in which a fault shows soonest."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools import bucket, demo, engine, host, playbook, registry
from tools.shell import CACHE, ROOT, VENV_BIN, Failure, run, say

# Longest first, so that all lanes end together.
SCENARIOS = (
    "site",
    "pgbackrest",
    "disaster_recovery",
    "restore",
    "accidents",
    "access",
    "firewall",
    "restore_drill",
    "postgresql",
    "caddy",
    "offsite",
    "app",
    "integrity",
    "pgvector",
    "object_store",
    "pgbouncer",
    "hardening",
    "docker",
    "valkey",
    "base",
    "holdfast",
    "preflight",
)
# Two cores have work for three: each waits for a third of its time, for a bucket that is away or a change that is taken back.
AT_A_TIME = 3
# A bound for what hangs: on a machine of half the speed the longest take most of an hour.
SCENARIO_SECONDS = 5000
LOGS = CACHE / "logs"
# What says why a job failed, in pytest's words and in Ansible's; a log's tail often shows only what came after.
REASON = re.compile(r"^\s*\"?(?:FAILED |ERROR |fatal: |E  )")
REASONS_SHOWN = 12
REASON_WIDTH = 300

Jobs = dict[str, Callable[[], str]]


def scenario(name: str, told: Mapping[str, str] | None = None) -> None:
    """Run one Molecule scenario from a bare host to its end, showing it; its tests are told more by the environment."""
    words = _molecule(name)
    _prepare()
    run(words, show=True, timeout_seconds=SCENARIO_SECONDS, env={**_environment(), **playbook.quick(), **(told or {})})


def _molecule(name: str) -> list[str | Path]:
    if not (ROOT / "molecule" / name / "molecule.yml").exists():
        known = ", ".join(sorted(path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml")))
        raise Failure(f"There is no scenario '{name}': it is one of {known}.")
    return [VENV_BIN / "molecule", "test", "--scenario-name", name]


def _environment() -> dict[str, str]:
    # Each scenario may be run beside others: none shares a folder for temporary files with another.
    return {"PATH": f"{VENV_BIN}:{os.environ['PATH']}", "ANSIBLE_FORCE_COLOR": "0", "NO_COLOR": "1"}


def _prepare() -> None:
    engine.ensure()
    host.make_host_image()
    host.ensure_network()
    registry.ensure()
    # What all lanes use is made before they begin, as two that made it at once would mix a key with another one's certificate.
    bucket.prepare()


def _logged(name: str, words: list[str | Path], seconds: float, told: Mapping[str, str] | None = None) -> Callable[[], str]:
    """Make a job that runs a program, told more by the environment, into a log file, and answers with nothing, or with why it failed."""

    def job() -> str:
        log = LOGS / _log_name(name)
        begun = time.monotonic()
        say(f"{name} …")
        fault = ""
        try:
            done = run(words, timeout_seconds=seconds, env={**_environment(), **(told or {})}, check=False)
            log.write_text(done.stdout)
            if done.returncode:
                fault = "\n".join(done.stdout.strip().splitlines()[-60:])
        except Failure as failure:
            fault = str(failure)
            log.write_text(fault)
        say(f"{name}: {'FAILED' if fault else 'passed'} after {time.monotonic() - begun:.0f} s ({log.relative_to(ROOT)})")
        return fault

    return job


def _log_name(name: str) -> str:
    return f"{name.replace(' ', '-')}.log"


def _scenarios(names: Iterable[str]) -> Jobs:
    return {name: _logged(name, _molecule(name), SCENARIO_SECONDS, playbook.quick()) for name in names}


def reasons(log: str) -> list[str]:
    """The last lines of a log that say why it ended badly, each cut to one line of a screen or two."""
    return [line.strip()[:REASON_WIDTH] for line in log.splitlines() if REASON.match(line)][-REASONS_SHOWN:]


def everything() -> int:
    """Run all tests; return the exit code after a line that counts them."""
    LOGS.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    faults: dict[str, str] = {}
    count = 0

    def judge(jobs: Jobs, at_a_time: int = 1) -> None:
        nonlocal count
        with ThreadPoolExecutor(at_a_time) as pool:
            futures = {name: pool.submit(job) for name, job in jobs.items()}
        count += len(futures)
        faults.update({name: fault for name, future in futures.items() if (fault := future.result())})

    def python(*words: str | Path) -> list[str | Path]:
        return [VENV_BIN / "python", *words]

    demo.down()  # the demo's test begins from nothing, and ends with nothing
    # The unit tests' bad inputs need a host.
    engine.ensure()
    host.make_host_image()
    # Making the other images waits for packages that come over the network.
    with ThreadPoolExecutor(1) as pool:
        prepared = pool.submit(_prepare)
        lint = _logged("lint", python("-m", "tools", "lint"), 900)
        judge({"lint": lint, "unit": _logged("unit", [VENV_BIN / "pytest", "tests"], 2700)}, 2)
    prepared.result()
    reference_app = python(ROOT / "files" / "reference_app" / "backend" / "run_tests.py", "--base-image", registry.python_image())
    # The demo takes as long as the longest scenarios, so it begins with them; what takes the registry away must come after all.
    first = {
        "demo": _logged("demo", [VENV_BIN / "pytest", "--verbose", "molecule/demo/test_demo.py"], SCENARIO_SECONDS),
        "reference_app": _logged("reference_app", reference_app, 2700),
    }
    judge(first | _scenarios(SCENARIOS), AT_A_TIME)
    judge({"demo down": _logged("demo down", [VENV_BIN / "pytest", "--verbose", "molecule/demo/test_demo_down.py"], 600)})
    for name, fault in faults.items():
        print(f"\n{'=' * 20} {name} {'=' * 20}\n{fault}")
    for name in faults:
        print("\n".join([f"\n{name} failed:", *reasons((LOGS / _log_name(name)).read_text())]))
    minutes = (time.monotonic() - begun) / 60
    print(f"\n{minutes:.1f} minutes; logs are in {LOGS.relative_to(ROOT)}\n{count - len(faults)} passed, {len(faults)} failed")
    return 1 if faults else 0
