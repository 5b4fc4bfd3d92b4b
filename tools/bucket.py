"""The bucket off the host: a container HOST-bucket that speaks S3 over TLS, keeps old versions, and survives its host."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from tools import host, secrets
from tools.shell import CACHE, ROOT, Failure, run, step

BUCKET = "backups"
PORT = 8333
REGION = "us-east-1"
MARK = "holdfast.bucket"
INVENTORY = "demo"
ACCESS_KEY = "holdfast-host"
SECRET = "pgbackrest_bucket_secret_key"
ADMIN_ACCESS_KEY = "admin"
RETENTION_DAYS = 1
START_SECONDS = 60
FOLDER = CACHE / "bucket"
AUTHORITY = FOLDER / "ca.crt"
VARIABLES = ROOT / "inventories" / INVENTORY / "group_vars" / "all"
AUTHORITY_FILE = VARIABLES / "bucket.yml"
PACKAGER = ROOT / "roles" / "object_store" / "files" / "seaweedfs-package.py"
# SIGKILL loses nothing that was accepted, and its own way to stop takes 15 s. The gRPC ports ask for no key: only S3 leaves loopback.
SERVE = (
    "weed", "-logtostderr=true", "server", "-dir=/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
    "-master.telemetry=false", "-master.electionTimeout=1s", "-master.volumeSizeLimitMB=1024", "-volume.max=0",
    "-filer", "-filer.exposeDirectoryData=false", "-filer.disableDirListing",
    "-s3", f"-s3.port={PORT}", "-s3.ip.bind=0.0.0.0", "-s3.config=/etc/bucket/identities.json", "-s3.iam=false",
    "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false", "-s3.allowDeleteBucketNotEmpty=false",
    "-s3.cert.file=/etc/bucket/tls.crt", "-s3.key.file=/etc/bucket/tls.key",
)  # fmt: skip


def name_of(host_name: str) -> str:
    """Name the container that keeps a host's past."""
    return f"{host_name}-bucket"


def authority() -> bool:
    """Make the authority of all buckets of this checkout, and write it into the demo's inventory; say whether it was written."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not AUTHORITY.exists():
        run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650",
             "-subj", "/CN=Holdfast buckets", "-addext", "basicConstraints=critical,CA:TRUE,pathlen:0",
             "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout", FOLDER / "ca.key", "-out", AUTHORITY]
        )  # fmt: skip
    # JSON is YAML, and writes a certificate on one line.
    content = json.dumps({"__bucket_authority": AUTHORITY.read_text()})
    text = f"---\n# Written by the tools: who signed the certificate of the bucket off the host.\n{content}\n"
    if AUTHORITY_FILE.exists() and AUTHORITY_FILE.read_text() == text:
        return False
    AUTHORITY_FILE.write_text(text)
    return True


def _certificate(name: str) -> Path:
    """Make the certificate of one bucket's container, and return its folder."""
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    issued: list[str | Path] = ["openssl", "verify", "-CAfile", AUTHORITY, folder / "tls.crt"]
    if not (folder / "tls.crt").exists() or run(issued, check=False).returncode:
        run(
            ["openssl", "req", "-x509", "-CA", AUTHORITY, "-CAkey", FOLDER / "ca.key", "-newkey", "ec",
             "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "825", "-subj", "/CN=bucket",
             "-addext", f"subjectAltName=DNS:{name},DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE",
             "-addext", "extendedKeyUsage=serverAuth", "-keyout", folder / "tls.key", "-out", folder / "tls.crt"]
        )  # fmt: skip
    return folder


def _admin_secret() -> str:
    """Return the secret of the key that may do everything, which never leaves the controller."""
    path = FOLDER / "admin-secret"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.random_value())
    return path.read_text()


def _identities() -> str:
    """Say who may do what: the host's key reads, writes and lists, and is refused what would destroy a version."""
    admin = {"accessKey": ADMIN_ACCESS_KEY, "secretKey": _admin_secret()}
    limited = {"accessKey": ACCESS_KEY, "secretKey": secrets.read(INVENTORY)[SECRET]}
    return json.dumps(
        {
            "identities": [
                {"name": "admin", "credentials": [admin], "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
                {"name": "host", "credentials": [limited], "actions": [f"{right}:{BUCKET}" for right in ("Read", "Write", "List")]},
            ]
        }
    )


def _image() -> str:
    """Make the image that serves S3 out of the same package that the role object_store installs."""
    versions: dict[str, str] = yaml.safe_load((VARIABLES / "versions.yml").read_text())
    version, checksum = versions["object_store_version"], versions["object_store_sha256"]
    package = CACHE / "artifacts" / f"holdfast-seaweedfs_{version}_amd64.deb"
    run([sys.executable, PACKAGER, f"--version={version}", f"--sha256={checksum}", f"--package={package}"], timeout_seconds=1200)
    return host.make_image("holdfast/bucket", ("ca-certificates",), unpack=(package,))


def prepare() -> None:
    """Make what the buckets of all hosts share: the authority, the admin's secret and the image."""
    authority()
    _admin_secret()
    _image()


def client(host_name: str, access_key: str = ADMIN_ACCESS_KEY) -> Any:
    """Return an S3 client of boto3 to a host's bucket from this machine, with the admin's key or with the host's."""
    import boto3
    from botocore.config import Config

    port = run(["docker", "port", name_of(host_name), str(PORT)]).stdout.splitlines()[0].rsplit(":", 1)[1]
    return boto3.client(
        "s3",
        endpoint_url=f"https://localhost:{port}",
        region_name=REGION,
        verify=str(AUTHORITY),
        aws_access_key_id=access_key,
        aws_secret_access_key=_admin_secret() if access_key == ADMIN_ACCESS_KEY else secrets.read(INVENTORY)[SECRET],
        config=Config(
            s3={"addressing_style": "path"}, connect_timeout=5, read_timeout=30, retries={"max_attempts": 0}, proxies={}
        ),
    )  # fmt: skip


def wait_serving(host_name: str) -> None:
    """Wait until the bucket's service lists its buckets.

    Raises:
        Failure: it did not in time.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    said: Exception | None = None
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            client(host_name).list_buckets()
        except (BotoCoreError, ClientError, Failure) as error:
            said = error
            time.sleep(0.3)
        else:
            return
    raise Failure(f"{name_of(host_name)} did not answer in {START_SECONDS} s: {said}")


def _make_bucket(host_name: str) -> None:
    """Make the bucket with object lock, which switches versions on for good."""
    admin = client(host_name)
    deadline = time.monotonic() + START_SECONDS
    while BUCKET not in [each["Name"] for each in admin.list_buckets()["Buckets"]]:
        try:
            admin.create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
        except admin.exceptions.ClientError as error:  # it lists before the part that stores is there
            if time.monotonic() > deadline:
                raise Failure(f"{name_of(host_name)} did not make its bucket: {error}") from error
            time.sleep(0.3)
    retention = {"Mode": "COMPLIANCE", "Days": RETENTION_DAYS}
    admin.put_object_lock_configuration(
        Bucket=BUCKET, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": retention}}
    )
    # The right to write would be the right to have old versions expire.
    rule = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutLifecycleConfiguration", "Resource": f"arn:aws:s3:::{BUCKET}"}
    admin.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [rule]}))


def up(host_name: str) -> bool:
    """Bring the bucket of a host up; what it keeps stays.

    Args:
        host_name: name of the host's container.

    Returns:
        Whether anything had to be done.
    """
    changed = secrets.ensure(INVENTORY)
    changed |= authority()
    name = name_of(host_name)
    folder = _certificate(name)
    identities = _identities()
    mark = hashlib.sha256((identities + (folder / "tls.crt").read_text()).encode()).hexdigest()[:16]
    if host.running(name) and (folder / "mark").exists() and (folder / "mark").read_text() == mark:
        return changed
    with step(f"Start the bucket {name}"):
        if not host.exists(name):
            image = _image()
            host.ensure_network()
            run(
                ["docker", "create", "--name", name, "--hostname", name, "--network", host.NETWORK, "--label", MARK,
                 "--restart", "unless-stopped", "--stop-signal", "KILL", "--publish", f"127.0.0.1::{PORT}",
                 "--volume", "/data", image, *SERVE]
            )  # fmt: skip
        (folder / "identities.json").touch(mode=0o600)
        (folder / "identities.json").write_text(identities)
        run(["docker", "cp", f"{folder}/.", f"{name}:/etc/bucket"])
        run(["docker", "restart", name])
        wait_serving(host_name)
        _make_bucket(host_name)
        (folder / "mark").write_text(mark)
    return True


def save(host_name: str, archive: Path) -> None:
    """Copy all that a host's bucket keeps into an archive; it serves again afterwards."""
    name = name_of(host_name)
    run(["docker", "stop", name], timeout_seconds=60)
    run(["sh", "-c", f"docker cp {name}:/data - > {archive}"])
    run(["docker", "start", name])
    wait_serving(host_name)


def load(host_name: str, archive: Path) -> None:
    """Have a host's bucket keep what an archive holds, and nothing else: what came later belongs to a disk that is gone."""
    name = name_of(host_name)
    run(["docker", "stop", name], timeout_seconds=60)
    image = run(["docker", "inspect", "--format", "{{.Image}}", name]).stdout.strip()
    run(["docker", "run", "--rm", "--volumes-from", name, image, "find", "/data", "-mindepth", "1", "-delete"])
    run(["sh", "-c", f"docker cp - {name}:/ < {archive}"])
    run(["docker", "start", name])
    wait_serving(host_name)


def down(host_name: str) -> bool:
    """Remove the bucket of a host with all that it keeps, and say whether it was there."""
    (FOLDER / name_of(host_name) / "mark").unlink(missing_ok=True)
    if not host.exists(name_of(host_name)):
        return False
    run(["docker", "rm", "--force", "--volumes", name_of(host_name)], timeout_seconds=120)
    return True
