"""The demo, as a person meets it: up, up again, used in a browser, rebooted."""

from __future__ import annotations

import json
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tools import browser, bucket
from tools.playbook import quick
from tools.shell import CACHE, ROOT, VENV_BIN, run

REBOOT_SECONDS = 60


def _make(target: str, seconds: float = 3600) -> str:
    return run(["make", "--silent", target], timeout_seconds=seconds).stdout


def _answers(info: dict[str, Any]) -> bool:
    context = ssl.create_default_context(cafile=info["ca_file"])
    try:
        with urllib.request.urlopen(info["url"] + "/api/openapi.json", context=context, timeout=5) as answer:
            return bool(json.load(answer)["openapi"])
    except OSError:
        return False


@pytest.fixture(scope="module")
def info() -> Iterator[dict[str, Any]]:
    """Bring the demo up, say where it is, and stop it: the test of its end finds it there, and it keeps no core busy until then."""
    _make("demo")
    facts: dict[str, Any] = json.loads(_make("demo-info"))
    yield facts
    run(["docker", "stop", "--time", "90", facts["host"], bucket.name_of(facts["host"])], timeout_seconds=180)


def test_answers(info: dict[str, Any]) -> None:
    """`make demo` ends with the application answering over TLS, and says where and how to log in."""
    assert _answers(info)
    assert info["username"] and len(info["password"]) >= 16


def test_again(info: dict[str, Any]) -> None:
    """`make demo` again changes nothing, and says so."""
    said = _make("demo")
    assert "Nothing was changed" in said
    assert info["url"] in said


def test_tags(info: dict[str, Any]) -> None:
    """Each section of each role can be run without the role's others on a converged host, and changes nothing.

    Sections of one name are run together, as no role uses what is another's (the convention `own_variables_only`).
    """
    playbook = [VENV_BIN / "ansible-playbook", "-i", info["inventory"], "site.yml"]
    listed = run([*playbook, "--list-tags"]).stdout
    tags = [tag for tag in listed.split("TASK TAGS: [")[1].split("]")[0].split(", ") if ":" in tag]
    assert len(tags) > 15
    sections: dict[str, list[str]] = {}
    for tag in tags:
        sections.setdefault(tag.split(":")[1], []).append(tag)
    for together in map(",".join, sections.values()):
        said = run([*playbook, "--tags", together], timeout_seconds=600, env=quick()).stdout
        assert "changed=0" in said and "failed=0" in said, f"--tags {together}:\n{said[-2000:]}"


def test_browser(info: dict[str, Any]) -> None:
    """A person logs in with a browser, uploads a document, asks a question, and sees the passage."""
    browser.install()
    done = subprocess.run(
        [VENV_BIN / "python", "-m", "tools.browser", json.dumps(info)], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (CACHE / "demo" / "browser.png").stat().st_size > 10_000


def test_reboot(info: dict[str, Any]) -> None:
    """After a reboot of the host everything is back and answers within a minute, with no hand on it."""
    begun = time.monotonic()
    run(["docker", "restart", "--time", "90", info["host"]], timeout_seconds=180)
    restarted = time.monotonic()
    while not _answers(info):
        assert time.monotonic() - restarted < REBOOT_SECONDS, "no answer a minute after the reboot"
        time.sleep(0.5)
    print(f"stopped in {restarted - begun:.1f} s, answered {time.monotonic() - restarted:.1f} s after")
