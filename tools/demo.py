"""The demo: the whole application on this machine, on a host in a container."""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tools import admin, bucket, engine, host, registry
from tools.shell import CACHE, ROOT, VENV_BIN, Failure, run, say, step

NAME = "holdfast-demo"
INVENTORY = "inventories/demo"
HTTPS_PORT, HTTP_PORT = 8443, 8080
URL = f"https://localhost:{HTTPS_PORT}"
CA_FILE = CACHE / "demo" / "ca.crt"
CADDY_ROOT = "/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt"
ANSWER_SECONDS = 60
VAULT = ROOT / INVENTORY / "group_vars" / "all" / "vault.yml"


def _ready() -> str:
    """Ask the application over TLS; return what is wrong, or nothing."""
    context = ssl.create_default_context(cafile=str(CA_FILE))
    try:
        with urllib.request.urlopen(f"{URL}/", context=context, timeout=5) as page:
            if b"<html" not in page.read():
                return f"{URL}/ is no page"
        with urllib.request.urlopen(f"{URL}/api/openapi.json", context=context, timeout=5) as answer:
            json.load(answer)
    except (urllib.error.URLError, OSError, ValueError) as error:
        return f"{URL}: {error}"
    return ""


def _playbook(*arguments: str) -> int:
    """Run the site's playbook, showing it, and return how many tasks changed something."""
    log = CACHE / "demo" / "ansible.log"
    log.unlink(missing_ok=True)
    words: list[str | Path] = [VENV_BIN / "ansible-playbook", "-i", INVENTORY, *arguments]
    done = run(
        words,
        show=True,
        timeout_seconds=3000,
        check=False,
        env={"ANSIBLE_LOG_PATH": str(log), "ANSIBLE_FORCE_COLOR": "true" if sys.stderr.isatty() else "false"},
    )
    if done.returncode:
        raise Failure("The playbook failed; its last lines above say at which task, and why.")
    return sum(int(count) for count in re.findall(r"changed=(\d+)", log.read_text()))


def _live_images() -> dict[str, str]:
    """Ask the host which images its live release has."""
    found: dict[str, str] = json.loads(run(["docker", "exec", NAME, "cat", "/srv/app/live/release.json"]).stdout)["images"]
    return found


def _wanted_images() -> dict[str, str]:
    """Read which images the demo's inventory names."""
    text = registry.IMAGES_FILE.read_text()
    found: dict[str, str] = json.loads(text[text.index("{") :])["app_images"]
    return found


def up() -> None:
    """Bring the application up on this machine and say where to click."""
    engine.ensure()
    (CACHE / "demo").mkdir(parents=True, exist_ok=True)
    changed = registry.ensure()
    changed |= bucket.up(NAME)
    with step(f"Boot the host {NAME}"):
        changed |= host.up(NAME, publish=(f"127.0.0.1:{HTTPS_PORT}:443", f"127.0.0.1:{HTTP_PORT}:80"))
    with step("Bring the host to what the inventory says (ansible-playbook site.yml)"):
        tasks = _playbook("site.yml")
    # A run of site.yml never changes which release is live; what was built anew since is deployed by name.
    if _live_images() != _wanted_images():
        with step("Deploy the images that were built anew (ansible-playbook playbooks/deploy.yml)"):
            tasks += _playbook("playbooks/deploy.yml")
    CA_FILE.write_text(run(["docker", "exec", NAME, "cat", CADDY_ROOT]).stdout)
    with step("Ask the application"):
        deadline = time.monotonic() + ANSWER_SECONDS
        while wrong := _ready():
            if time.monotonic() > deadline:
                raise Failure(f"The application does not answer: {wrong}. `make demo-shell`, then `journalctl -b -p warning`, shows why.")
            time.sleep(1)
    facts = _facts()
    say("Nothing was changed: the demo was up already." if not (changed or tasks) else f"Done: {tasks} tasks changed the host.")
    print(
        f"\nThe application answers at  {facts['url']}\n"
        f"  log in as                 {facts['username']}\n"
        f"  with the password         {facts['password']}\n"
        f"  certificate authority     {facts['ca_file']}  (import it, or accept the browser's warning)\n"
        f"  again, as JSON            make -s demo-info\n"
    )


def _facts() -> dict[str, str]:
    variables = json.loads(run([VENV_BIN / "ansible-inventory", "-i", INVENTORY, "--host", NAME]).stdout)
    return {
        "url": URL,
        "ca_file": str(CA_FILE),
        "username": str(variables["app_admin_username"]),
        "password": str(variables["app_admin_password"]),
        "inventory": str(ROOT / INVENTORY),
        "host": NAME,
        "registry": f"{registry.NAME}:{registry.PORT}",
    }


def info() -> None:
    """Print where the demo is and how to log in, as JSON."""
    if not VAULT.exists() or not host.running(NAME):
        raise Failure("The demo is not up: run `make demo`.")
    print(json.dumps(_facts(), indent=2))


def shell() -> None:
    """Open a shell on the demo's host."""
    if not host.running(NAME):
        raise Failure("The demo is not up: run `make demo`.")
    os.execvp("docker", ["docker", "exec", "--interactive", "--tty", NAME, "bash", "--login"])


def down() -> None:
    """Remove the demo's containers, volumes, images, network and generated files; end the engine if it was started for the demo."""
    # An engine that stands still has the demo's containers all the same: they would come back without the secrets that go here.
    if engine.woken():
        with step("Remove the host, its bucket, the registry, their volumes and images"):
            host.down(NAME)
            bucket.down(NAME)
            registry.remove()
            host.remove_images_and_network()
        engine.stop()
    VAULT.unlink(missing_ok=True)
    admin.remove()
    bucket.AUTHORITY_FILE.unlink(missing_ok=True)
    for name in ("demo", "bucket", "registry", "docker-config"):
        shutil.rmtree(CACHE / name, ignore_errors=True)
    if not list(ROOT.glob("inventories/*/group_vars/all/vault.yml")):
        (ROOT / ".vault-password").unlink(missing_ok=True)
    say("The demo is gone. What stays are tools: .venv and .cache (`make clean` removes them) and Debian's packages.")
