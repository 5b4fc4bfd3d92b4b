#!/usr/bin/env python3
"""Run the backend's tests in a container: `python3 files/reference_app/backend/run_tests.py [pytest arguments]`.

Needs a running Docker engine; where no base image is there, also mmdebstrap (installed if missing) and Debian's archive.
Everything else (Postgres 17, pgvector, PgBouncer, Valkey, an S3 service) is real and inside that container, which has no network.
The exit status is pytest's.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

BACKEND = Path(__file__).resolve().parent
BASE_IMAGE = "holdfast/python:trixie"
SERVICES_IMAGE = "holdfast/reference-app-services"
SHIPPED_IMAGE = "holdfast/reference-app-backend:test"
TESTS_IMAGE = "holdfast/reference-app-tests"
CERTIFICATES = Path("/usr/local/share/ca-certificates")
# The legacy builder is everywhere; BuildKit needs a plugin that Debian does not install with the engine.
ENVIRONMENT = {**os.environ, "DOCKER_BUILDKIT": "0"}
BUILD_TIMEOUT_SECONDS = 1500
TEST_TIMEOUT_SECONDS = 2400


def say(message: str, started: float) -> None:
    """Print a step with the seconds since `started`."""
    print(f"[{time.monotonic() - started:5.1f} s] {message}", file=sys.stderr, flush=True)


def image_exists(name: str) -> bool:
    """Return whether the engine has an image of that name."""
    return subprocess.run(["docker", "image", "inspect", name], capture_output=True, timeout=60, check=False).returncode == 0


def make_base_image() -> None:
    """Make a Debian trixie image with Python, trusting whatever certificate authorities this machine was told to trust."""
    as_root = [] if os.geteuid() == 0 else ["sudo"]
    if not shutil.which("mmdebstrap"):
        subprocess.run([*as_root, "apt-get", "install", "-y", "-qq", "mmdebstrap"], check=True, timeout=BUILD_TIMEOUT_SECONDS)
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "base.tar"
        command = [*as_root, "mmdebstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates"]
        if CERTIFICATES.is_dir():
            command += [f"--customize-hook=copy-in {CERTIFICATES} /usr/local/share/"]
        command += ['--customize-hook=chroot "$1" update-ca-certificates', "trixie", str(archive)]
        subprocess.run(command, check=True, timeout=BUILD_TIMEOUT_SECONDS)
        subprocess.run(["docker", "import", str(archive), BASE_IMAGE], check=True, timeout=BUILD_TIMEOUT_SECONDS)


def context(names: Sequence[str]) -> bytes:
    """Return a build context of these files and directories, the same bytes whenever their content is the same."""

    def clean(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = 0
        return None if "__pycache__" in member.name or member.name.endswith("_cache") else member

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            archive.add(BACKEND / name, arcname=name, filter=clean)
    return buffer.getvalue()


def build(tag: str, base_image: str, dockerfile: str, names: Sequence[str]) -> None:
    """Build an image; its output is shown only when it fails.

    Raises:
        SystemExit: the build failed.
    """
    command = ["docker", "build", "--tag", tag, "--file", dockerfile, "--build-arg", f"BASE_IMAGE={base_image}"]
    result = subprocess.run(
        [*command, "-"],
        input=context([dockerfile, *names]),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=BUILD_TIMEOUT_SECONDS,
        check=False,
    )
    if result.returncode:
        sys.stderr.buffer.write(result.stdout)
        raise SystemExit(f"building {tag} failed")


def main() -> int:
    """Build what is missing, run mypy and pytest; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-image", default=BASE_IMAGE, help="what to build on; made if it is the default and missing")
    parser.add_argument("--no-mypy", action="store_true", help="do not check types first")
    options, pytest_arguments = parser.parse_known_args()
    started = time.monotonic()
    if options.base_image == BASE_IMAGE and not image_exists(BASE_IMAGE):
        say("making the base image", started)
        make_base_image()
    say("building services, application, tests", started)
    services = f"{SERVICES_IMAGE}:{options.base_image.replace('/', '-').replace(':', '-')}"
    build(services, options.base_image, "tests/services.Dockerfile", [])
    shipped = ["requirements.txt", "requirements-build.txt", "pyproject.toml", "smart_audit"]
    build(SHIPPED_IMAGE, services, "Dockerfile", shipped)
    names = ["requirements-dev.txt", "pyproject.toml", "run_tests.py", "smart_audit", "tests"]
    build(TESTS_IMAGE, SHIPPED_IMAGE, "tests/Dockerfile", names)
    # No network: whatever the tests need is inside. Read-only and without capabilities, as the application runs in production.
    run = ["docker", "run", "--rm", "--network", "none", "--read-only", "--cap-drop", "ALL", "--shm-size", "256m", "--init"]
    run += ["--security-opt", "no-new-privileges", "--tmpfs", "/tmp:exec,mode=1777", TESTS_IMAGE]
    if not options.no_mypy:
        say("mypy", started)
        status = subprocess.run([*run, "mypy", "--cache-dir=/tmp/mypy"], timeout=TEST_TIMEOUT_SECONDS, check=False).returncode
        if status:
            return status
    say("pytest", started)
    status = subprocess.run([*run, "pytest", *pytest_arguments], timeout=TEST_TIMEOUT_SECONDS, check=False).returncode
    say(f"finished with exit status {status}", started)
    return status


if __name__ == "__main__":
    sys.exit(main())
