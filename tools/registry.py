"""The demo's registry, with TLS and a login, and the reference application's images in it."""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path

import yaml

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


def _sources_digest(part: str) -> str:
    """Digest what an image is made from: the files that git would take, and the base image's recipe."""
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard", APPLICATION / part]).stdout.split("\n")
    digest = hashlib.sha256()
    for name in sorted(filter(None, listed)):
        path = ROOT / name
        if path.is_file() and "/tests/" not in name:
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _push(part: str, base: str, registry: str, config: Path) -> str:
    """Build and push one image, and return its digest."""
    reference = f"{registry}/{REPOSITORY}/{part}:{_sources_digest(part)}"
    with step(f"Build and push the image {part}"):
        run(["docker", "build", "--build-arg", f"BASE_IMAGE={base}", "--tag", reference, APPLICATION / part], timeout_seconds=1200)
        pushed = run(["docker", "push", reference], env={"DOCKER_CONFIG": str(config)}, timeout_seconds=600).stdout
    found = re.findall(r"digest: (sha256:[0-9a-f]{64})", pushed)
    if not found:
        raise Failure(f"The registry gave no digest for {reference}:\n{pushed}")
    return str(found[-1])


def ensure() -> bool:
    """Bring the registry up, build and push the application's images, and write their digests into the demo's inventory.

    Returns:
        Whether anything was done.
    """
    changed = secrets.ensure(INVENTORY)
    password = secrets.read(INVENTORY)[SECRET]
    mark = hashlib.sha256(password.encode()).hexdigest()[:16]
    found = run(["docker", "container", "inspect", "--format", f'{{{{index .Config.Labels "{MARK}"}}}}', NAME], check=False)
    if found.returncode or found.stdout.strip() != mark:
        with step("Start the registry"):
            run(["docker", "rm", "--force", "--volumes", NAME], check=False)
            _create(password, mark)
    elif not host.running(NAME):
        run(["docker", "start", NAME])
    identity = run(["docker", "container", "inspect", "--format", "{{.Id}}", NAME]).stdout.strip()
    base = host.make_image("holdfast/python", PYTHON_PACKAGES)
    stamp = f"# {identity[:12]} {base} {' '.join(_sources_digest(part) for part in PARTS)}"
    if IMAGES_FILE.exists() and stamp in IMAGES_FILE.read_text():
        return changed
    registry = address()
    config = _folder().parent / "docker-config"
    for attempt in range(20):
        login = run(
            ["docker", "--config", config, "login", "--username", USERNAME, "--password-stdin", registry], stdin=password, check=False
        )
        if login.returncode == 0:
            break
        time.sleep(0.5 * (attempt + 1))
    else:
        raise Failure(f"The registry did not take the login:\n{login.stdout}")
    digests = {part: _push(part, base, registry, config) for part in PARTS}
    content = {
        "app_images": {part: f"{NAME}:{PORT}/{REPOSITORY}/{part}@{digest}" for part, digest in digests.items()},
        "docker_registry_certificates": {f"{NAME}:{PORT}": _certificate().read_text()},
    }
    IMAGES_FILE.write_text(f"---\n# Written by `make demo`.\n{stamp}\n" + yaml.safe_dump(content, width=200))
    return True


def remove() -> None:
    """Remove the registry, what it stored, and every image that was made for it."""
    run(["docker", "rm", "--force", "--volumes", NAME], check=False)
    IMAGES_FILE.unlink(missing_ok=True)
