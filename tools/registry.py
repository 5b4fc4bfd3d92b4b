"""The demo's registry, with TLS and a login, and the reference application's images in it."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path

from tools import host, secrets
from tools.shell import CACHE, ROOT, Failure, run, step

NAME = "holdfast-registry"
PORT = 5000
USERNAME = "holdfast"
REPOSITORY = "smart-audit"
MARK = "holdfast.registry"
SECRET = "app_registry_password"
INVENTORY = "demo"
APPLICATION = ROOT / "files" / "reference_app"
IMAGES_FILE = ROOT / "inventories" / INVENTORY / "group_vars" / "all" / "images.yml"
PARTS = ("backend", "frontend")
PACKAGES = ("apache2-utils", "ca-certificates", "docker-registry")
PYTHON_PACKAGES = ("ca-certificates", "python3", "python3-venv")
CONFIG = f"""version: 0.1
storage: {{filesystem: {{rootdirectory: /var/lib/registry}}, delete: {{enabled: true}}}}
http:
  addr: :{PORT}
  tls: {{certificate: /etc/registry/tls.crt, key: /etc/registry/tls.key}}
auth: {{htpasswd: {{realm: holdfast, path: /etc/registry/htpasswd}}}}
"""


def _folder() -> Path:
    folder = CACHE / "registry"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _certificate() -> Path:
    """Make the registry's own certificate, which is its own authority."""
    folder = _folder()
    certificate = folder / "tls.crt"
    if not certificate.exists():
        run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "825",
             "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME},DNS:localhost",
             "-keyout", folder / "tls.key", "-out", certificate]
        )  # fmt: skip
    return certificate


def _address() -> str:
    """Return where this machine reaches the registry: a loopback address, whose certificate the engine does not check."""
    return "localhost:" + run(["docker", "port", NAME, str(PORT)]).stdout.splitlines()[0].rsplit(":", 1)[1]


def _create(password: str, mark: str) -> None:
    """Make the container; its files are copied in before it starts, and the password goes in on standard input."""
    image = host.make_image("holdfast/registry", PACKAGES)
    host.ensure_network()
    folder = _folder()
    certificate = _certificate()
    (folder / "config.yml").write_text(CONFIG)
    run(
        ["docker", "create", "--name", NAME, "--hostname", NAME, "--network", host.NETWORK, "--label", f"{MARK}={mark}",
         "--restart", "unless-stopped", "--publish", f"127.0.0.1::{PORT}", "--volume", "/var/lib/registry",
         image, "docker-registry", "serve", "/etc/registry/config.yml"]
    )  # fmt: skip
    hashed = run(["docker", "run", "--rm", "--interactive", image, "htpasswd", "-niB", USERNAME], stdin=password).stdout.strip()
    (folder / "htpasswd").write_text(hashed + "\n")
    run(["docker", "cp", f"{folder}/.", f"{NAME}:/etc/registry"])
    run(["docker", "start", NAME])
    for name in ("htpasswd", "tls.key"):
        (folder / name).chmod(0o600)
    certificate.chmod(0o644)


def _sources_digest(folder: Path) -> str:
    """Digest what an image is made from: the files that git would take, without their tests."""
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]).stdout.splitlines()
    digest = hashlib.sha256()
    for name in sorted(set(listed)):
        path = ROOT / name
        if path.is_file() and "/tests/" not in name:
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def python_image() -> str:
    """Make the image that the application's are built on, and return its reference."""
    return host.make_image("holdfast/python", PYTHON_PACKAGES)


def _push(name: str, folder: Path) -> str:
    """Build and push one image, and return its reference by digest, as a test host knows it."""
    base = python_image()
    reference = f"{_address()}/{REPOSITORY}/{name}:{_sources_digest(folder)}"
    with step(f"Build and push the image {name}"):
        run(["docker", "build", "--build-arg", f"BASE_IMAGE={base}", "--tag", reference, folder], timeout_seconds=1200)
        pushed = run(["docker", "push", reference], env={"DOCKER_CONFIG": str(_login())}, timeout_seconds=600).stdout
    found = re.findall(r"digest: (sha256:[0-9a-f]{64})", pushed)
    if not found:
        raise Failure(f"The registry gave no digest for {reference}:\n{pushed}")
    return f"{NAME}:{PORT}/{REPOSITORY}/{name}@{found[-1]}"


def _login() -> Path:
    """Log the engine's client in, and return its folder of configuration, which is ours alone."""
    config = _folder().parent / "docker-config"
    password = secrets.read(INVENTORY)[SECRET]
    words: list[str | Path] = ["docker", "--config", config, "login", "--username", USERNAME, "--password-stdin", _address()]
    answer = ""
    for _ in range(30):
        done = run(words, stdin=password, check=False)
        if done.returncode == 0:
            return config
        answer = done.stdout
        time.sleep(1)
    raise Failure(f"The registry did not take the login:\n{answer}")


def _up() -> str:
    """Bring the registry up, and return an identity that changes when it starts empty."""
    password = secrets.read(INVENTORY)[SECRET]
    mark = hashlib.sha256(password.encode()).hexdigest()[:16]
    found = run(["docker", "container", "inspect", "--format", f'{{{{index .Config.Labels "{MARK}"}}}}', NAME], check=False)
    if found.returncode or found.stdout.strip() != mark:
        with step("Start the registry"):
            run(["docker", "rm", "--force", "--volumes", NAME], check=False)
            _create(password, mark)
    elif not host.running(NAME):
        run(["docker", "start", NAME])
    return run(["docker", "container", "inspect", "--format", "{{.Id}}", NAME]).stdout.strip()[:12]


def _write(target: Path, images: dict[str, Path]) -> bool:
    """Push images and write their references as variables, unless the file says that the registry has them; say whether it was done."""
    identity = _up()
    stamp = f"# {identity} {' '.join(_sources_digest(folder) for folder in images.values())}"
    if target.exists() and stamp in target.read_text().splitlines():
        return False
    content = {
        "app_images": {name: _push(name, folder) for name, folder in images.items()},
        "docker_registry_certificates": {f"{NAME}:{PORT}": _certificate().read_text()},
    }
    # JSON is YAML, and writes a certificate on one line.
    target.write_text(f"---\n# Written by `make demo` for the registry that it made.\n{stamp}\n{json.dumps(content, indent=2)}\n")
    return True


def ensure() -> bool:
    """Bring the registry up, with the reference application's images, and write their digests into the demo's inventory.

    Returns:
        Whether anything was done.
    """
    changed = secrets.ensure(INVENTORY)
    return _write(IMAGES_FILE, {part: APPLICATION / part for part in PARTS}) or changed


def push_probe() -> bool:
    """Bring the registry up with the probe of the role app's own scenario, and write its digest for that scenario."""
    changed = secrets.ensure(INVENTORY)
    return _write(_folder() / "probe.yml", {"probe": ROOT / "molecule" / "app" / "image"}) or changed


def remove() -> None:
    """Remove the registry, what it stored, and every image that was made for it."""
    run(["docker", "rm", "--force", "--volumes", NAME], check=False)
    IMAGES_FILE.unlink(missing_ok=True)
