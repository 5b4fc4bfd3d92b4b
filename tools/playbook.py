"""Run playbooks against test hosts, with the variables of the demo's inventory."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.shell import ROOT, VENV_BIN, run

# The short name, as Mitogen knows its own connections by it.
CONTAINER = {"ansible_connection": "docker"}
PLAY_SECONDS = 1800
ENVIRONMENT = {
    "PATH": f"{VENV_BIN}:{os.environ['PATH']}",
    "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    "ANSIBLE_FORCE_COLOR": "false",
    "ANSIBLE_NOCOLOR": "true",
}
# As Ansible runs for everybody who has not asked for more.
PLAIN = {"ANSIBLE_STRATEGY": "linear"}


def quick() -> dict[str, str]:
    """Return the environment in which Ansible keeps one interpreter on the host, where it else starts one for each module.

    A run that changes nothing takes less than half of the processor's time. It is for tests alone; what a person runs (`make demo`, a
    rebuild, runs over ssh, the virtual machine) is proven without it.
    """
    plugins = next((ROOT / ".venv" / "lib").glob("python3*/site-packages/ansible_mitogen/plugins/strategy"))
    return {"ANSIBLE_STRATEGY": "mitogen_linear", "ANSIBLE_STRATEGY_PLUGINS": str(plugins)}


def inventory(folder: Path, hosts: Mapping[str, Mapping[str, object]]) -> Path:
    """Write an inventory whose hosts are what the demo's host is.

    Args:
        folder: where it is written; made if it is missing.
        hosts: name → the host's own variables.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    variables = folder / "group_vars"
    if not variables.exists():
        variables.symlink_to(ROOT / "inventories" / "demo" / "group_vars")
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}, "object_store": {"hosts": hosts}}))
    return folder


def play(
    source: Path,
    playbook: str,
    *words: str,
    inputs: Mapping[str, Any] | None = None,
    timeout_seconds: float = PLAY_SECONDS,
    log: Path | None = None,
    strategy: Mapping[str, str] = PLAIN,
) -> subprocess.CompletedProcess[str]:
    """Run a playbook, and return its exit code and what it printed, without colours.

    Args:
        source: inventory.
        playbook: path below the repository's root.
        words: further arguments.
        inputs: variables that win over the inventory's; they are in no list of processes.
        timeout_seconds: ended after this many seconds.
        log: where it writes line by line what it does, with the time; what was there before goes.
        strategy: environment that chooses one of Ansible's strategies.

    Raises:
        Failure: it had not ended in time.
    """
    env = {**ENVIRONMENT, **strategy} | ({"ANSIBLE_LOG_PATH": str(log)} if log else {})
    if log:
        log.unlink(missing_ok=True)  # Ansible appends
    with tempfile.NamedTemporaryFile("w", suffix=".json") as given:
        json.dump(inputs or {}, given)
        given.flush()
        return run(
            [VENV_BIN / "ansible-playbook", "-i", source, playbook, "-e", f"@{given.name}", *words],
            env=env, check=False, timeout_seconds=timeout_seconds,
        )  # fmt: skip


def play_on(container: str, playbook: str, *words: str, **inputs: Any) -> subprocess.CompletedProcess[str]:
    """Run a playbook against one test host that is a container, with other inputs, and with the strategy of the scenario."""
    with tempfile.TemporaryDirectory() as folder:
        return play(inventory(Path(folder), {container: CONTAINER}), playbook, *words, inputs=inputs, strategy={})
