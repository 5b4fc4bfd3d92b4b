"""What the role object_store promises of every host that carries a bucket of its own."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass

import pytest
from testinfra.host import Host

CA_FILE = "/etc/object-store/ca.crt"
# Linux' uapi/linux/fs.h: the request that reads a file's attributes, and the attribute S of chattr.
FS_IOC_GETFLAGS, FS_SYNC_FL = 0x80086601, 0x8


@dataclass(frozen=True)
class Client:
    """Speaks S3 with one key, from the host itself."""

    host: Host
    address: str
    login: str

    def status(self, method: str, path: str, body: str = "") -> str:
        """Send one request and return its HTTP status."""
        # The login comes by standard input: it is in no list of processes.
        signed = "--config - --aws-sigv4 aws:amz:us-east-1:s3" if self.login else ""
        sent = f"--data-binary '{body}' --header 'Content-Type: application/octet-stream'" if body else ""
        return self.host.run(
            f"printf 'user = \"{self.login}\"\\n' | timeout 20 curl --silent --max-time 15 --cacert {CA_FILE} {signed} {sent} "
            f"--request {method} --output /tmp/promise-answer --write-out '%{{http_code}}' https://{self.address}{path}"
        ).stdout

    def answer(self) -> str:
        """Return the body of the last answer."""
        return self.host.check_output("cat /tmp/promise-answer; rm --force /tmp/promise-answer")


@pytest.fixture(scope="module")
def address(host: Host) -> str:
    """Read from the running socket where S3 is offered."""
    shown = host.check_output("systemctl show --property Listen --value object-store-proxy.socket")
    return shown.split()[0]


@pytest.fixture(scope="module")
def identities(host: Host) -> dict[str, dict[str, list[str] | str]]:
    """Read who may do what."""
    content = json.loads(host.check_output("cat /etc/object-store/identities.json"))["identities"]
    return {
        entry["name"]: {
            "login": f"{entry['credentials'][0]['accessKey']}:{entry['credentials'][0]['secretKey']}",
            "buckets": sorted({action.split(":")[1] for action in entry["actions"] if ":" in action}),
        }
        for entry in content
    }


@pytest.fixture(scope="module")
def app(host: Host, address: str, identities: dict[str, dict[str, list[str] | str]]) -> Client:
    """Be the application."""
    return Client(host, address, str(identities["app"]["login"]))


@pytest.fixture(scope="module")
def buckets(identities: dict[str, dict[str, list[str] | str]]) -> list[str]:
    """Name the application's buckets."""
    return list(identities["app"]["buckets"])


def test_application_can_work(app: Client, buckets: list[str]) -> None:
    """The application's key puts, reads back, lists and deletes objects in its buckets, over verified TLS."""
    assert buckets
    for bucket in buckets:
        key, content = f"/{bucket}/.holdfast-probe-{uuid.uuid4().hex}", uuid.uuid4().hex
        assert app.status("PUT", key, content) == "200"
        assert app.status("GET", key) == "200"
        assert app.answer() == content
        assert app.status("GET", f"/{bucket}?list-type=2&max-keys=1") == "200"
        assert app.status("DELETE", key) == "204"
        assert app.status("GET", key) == "404"


def test_application_is_limited(app: Client, buckets: list[str]) -> None:
    """The application's key can neither make nor delete a bucket."""
    other = f"/holdfast-probe-{uuid.uuid4().hex[:8]}"
    assert app.status("PUT", other) == "403"
    assert app.status("GET", other) in ("403", "404")
    assert app.status("DELETE", f"/{buckets[0]}") == "403"


def test_strangers_are_refused(host: Host, address: str, buckets: list[str]) -> None:
    """Nobody gets in without a key, or with a wrong one."""
    for login in ("", "app:wrong-secret-of-a-stranger", "stranger:wrong-secret-of-a-stranger"):
        stranger = Client(host, address, login)
        for path in ("/", f"/{buckets[0]}?list-type=2", f"/{buckets[0]}/x"):
            assert stranger.status("GET", path) == "403", (login, path)
        assert stranger.status("PUT", f"/{buckets[0]}/x", "x") == "403", login


def test_only_s3_leaves_loopback(host: Host, address: str) -> None:
    """Only S3 is offered beyond loopback, and only on the one address."""
    lines = host.check_output("ss --listening --tcp --udp --numeric --processes --no-header").splitlines()
    offered = [line.split()[4] for line in lines if '"weed"' in line]
    assert offered
    assert all(place.startswith("127.0.0.1:") for place in offered), offered
    port = address.rsplit(":", 1)[1]
    assert {line.split()[4] for line in lines if re.search(rf":{port}\s", line)} == {address, f"127.0.0.1:{port}"}


def test_certificate(host: Host, address: str) -> None:
    """The certificate that is served was made by the host's own authority, and has more than a week to live."""
    served = f"openssl s_client -connect {address} -CAfile {CA_FILE} -verify_return_error </dev/null 2>/dev/null"
    host.check_output(f"timeout 20 {served} | openssl x509 -noout -checkend 604800")


def test_old_tls_is_refused(host: Host, address: str) -> None:
    """TLS before 1.2 is refused."""
    asked = f"timeout 20 openssl s_client -connect {address} -CAfile {CA_FILE}"
    assert host.run(f"{asked} -tls1_1 -cipher 'DEFAULT@SECLEVEL=0' </dev/null").rc != 0
    assert host.run(f"{asked} -tls1_2 </dev/null").rc == 0


def test_accepted_is_on_the_disk(host: Host) -> None:
    """Each file of the store is written to the disk at once: what was accepted survives a power cut."""
    look = (
        "import fcntl, os, struct\n"
        "for folder, _, names in os.walk('/var/lib/object-store'):\n"
        "    for path in [folder, *(os.path.join(folder, name) for name in names)]:\n"
        "        try:\n"
        "            opened = os.open(path, os.O_RDONLY)\n"
        # The store is at work: what it removed meanwhile has nothing to lose.
        "        except FileNotFoundError:\n"
        "            continue\n"
        f"        flags = struct.unpack('l', fcntl.ioctl(opened, {FS_IOC_GETFLAGS:#x}, bytes(8)))[0]\n"
        "        os.close(opened)\n"
        f"        print(path, bool(flags & {FS_SYNC_FL:#x}))\n"
    )
    shown = dict(line.rsplit(" ", 1) for line in host.check_output("timeout 60 python3 -c %s", look).splitlines())
    assert any(path.endswith(".dat") for path in shown)
    assert {path for path, synchronous in shown.items() if synchronous != "True"} == set()


def test_boot(host: Host) -> None:
    """The store runs, and starts at boot."""
    store = host.service("object-store.service")
    assert store.is_running
    assert store.is_enabled


def test_secrets(host: Host) -> None:
    """Only root and the service read the keys; nothing of them is in the list of processes, and the service is not root."""
    for path in ("/etc/object-store/identities.json", "/etc/object-store/server.key"):
        assert host.file(path).mode == 0o640, path
        assert host.file(path).group == "object-store", path
    assert host.file("/etc/object-store/ca.key").mode == 0o600
    shown = host.check_output("ps -o user:20=,args= -C weed").strip()
    assert shown.startswith("object-store ")
    assert "secretKey" not in shown


def test_no_telemetry(host: Host) -> None:
    """The store tells nobody about the host."""
    assert "-master.telemetry=false" in host.check_output("ps -o args= -C weed")
