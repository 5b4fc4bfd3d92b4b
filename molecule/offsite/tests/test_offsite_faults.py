"""The copies off the host: each comes back byte for byte, and each fault is told in a sentence and leaves what was copied before."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import database
import documents
import pytest
from testinfra.host import Host

SETTINGS = "/etc/holdfast-offsite.json"
METRICS = "/var/lib/prometheus/node-exporter"
SCRATCH = "offsite_scratch"


def _copy(host: Host, what: str) -> None:
    """Make a copy as the timer does."""
    host.check_output(f"timeout 300 systemctl start holdfast-offsite@{what}.service")


def _refused(host: Host, *words: str) -> str:
    """Run a copy that has to fail, and return the sentence."""
    said = host.run(f"timeout 300 holdfast offsite {' '.join(words)}")
    assert said.rc == 1, said.stdout + said.stderr
    assert "Traceback" not in said.stderr
    return said.stderr


def _metric(host: Host, what: str, name: str) -> float:
    text = host.check_output(f"cat {METRICS}/holdfast_offsite_{what}.prom")
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"holdfast_offsite_{name}{{"))


@contextmanager
def _settings(host: Host, **changed: object) -> Iterator[str]:
    """Have other settings for a while, and return the option that names them."""
    content = json.loads(host.check_output(f"cat {SETTINGS}"))
    bucket = {name: changed.pop(name) for name in list(changed) if name in content["bucket"]}
    content |= changed
    content["bucket"] |= bucket
    path = f"/run/offsite-{uuid.uuid4().hex}.json"
    host.check_output("umask 077; printf %%s %s > %s", json.dumps(content), path)
    yield f"--settings {path}"
    host.check_output(f"rm {path}")


@pytest.fixture(scope="module", autouse=True)
def _filled(host: Host) -> None:
    database.ask(host, "DROP TABLE IF EXISTS offsite_rows; CREATE TABLE offsite_rows AS "
               "SELECT n, md5(n::text) AS word, '[1,2,3]'::vector AS place FROM generate_series(1, 5000) n")  # fmt: skip


def test_dump_is_restorable(host: Host) -> None:
    """A dump goes into an empty database with pg_restore, and holds the same rows."""
    _copy(host, "dumps")
    assert _metric(host, "dumps", "success") == 1
    assert time.time() - _metric(host, "dumps", "last_success_timestamp_seconds") < 120
    newest = next(
        line.split()[0]
        for line in reversed(host.check_output("holdfast offsite list").splitlines())
        if line.split()[0].endswith("smart_audit.dump")
    )
    checksum = "SELECT count(*) || md5(string_agg(r::text, ',' ORDER BY n)) FROM offsite_rows r"
    before = database.ask(host, checksum)
    database.ask(host, f"DROP DATABASE IF EXISTS {SCRATCH}", "postgres")
    database.ask(host, f"CREATE DATABASE {SCRATCH} TEMPLATE template0", "postgres")
    host.check_output(
        f"set -o pipefail; holdfast offsite cat {newest} | timeout 120 runuser -u postgres -- pg_restore --exit-on-error --dbname {SCRATCH}"
    )
    assert database.ask(host, checksum, SCRATCH) == before
    roles = host.check_output(f"holdfast offsite cat {newest.rsplit('/', 1)[0]}/roles.sql")
    assert "smart_audit_owner" in roles and "SCRAM-SHA-256" in roles
    database.ask(host, f"DROP DATABASE {SCRATCH}", "postgres")


def test_deleted_document_comes_back(host: Host) -> None:
    """A document that the application has deleted or replaced stays in the bucket, and one that it keeps comes back after a loss."""
    kept, gone = f"kept-{uuid.uuid4().hex}", f"gone-{uuid.uuid4().hex}"
    for name in (kept, gone):
        documents.ask(host, "PUT", name, f"text of {name}")
    _copy(host, "files")
    documents.ask(host, "DELETE", gone)
    time.sleep(1)
    documents.ask(host, "PUT", kept, f"new text of {kept}")
    _copy(host, "files")
    removed = [line for line in host.check_output("holdfast offsite list").splitlines() if line.startswith("documents/removed/")]
    assert host.check_output(f"holdfast offsite cat {removed[-1]}/{gone}") == f"text of {gone}"
    assert host.check_output(f"holdfast offsite cat {removed[-1]}/{kept}") == f"text of {kept}"
    documents.ask(host, "DELETE", kept)
    host.check_output("timeout 120 holdfast offsite restore documents")
    assert documents.ask(host, "GET", kept) == f"new text of {kept}"


def test_replaced_document_is_copied(host: Host) -> None:
    """A document that was replaced by one of the same size is copied again, though the copy that is there is younger."""
    name = f"replaced-{uuid.uuid4().hex}"
    documents.ask(host, "PUT", name, "text of before")
    time.sleep(6)
    _copy(host, "files")
    documents.ask(host, "PUT", name, "text of after!")
    # What a copy that was under way meanwhile leaves.
    late = f"""from pathlib import Path; from holdfast import offsite
with offsite.offsite(offsite.Settings.read(Path("{SETTINGS}"))) as copies:
    copies.tool.write(f"{{offsite.CURRENT}}/{name}", b"text of before")"""
    host.check_output("sleep 1; PYTHONPATH=/usr/local/bin/holdfast python3 -c %s", late)
    assert host.check_output(f"holdfast offsite cat documents/current/{name}") == "text of before"
    _copy(host, "files")
    assert host.check_output(f"holdfast offsite cat documents/current/{name}") == "text of after!"


def test_files_come_back(host: Host) -> None:
    """Certificates, the release and the inventory come back byte for byte, and are not written again while nothing changes."""
    _copy(host, "files")
    before = host.check_output("holdfast offsite list | grep -c -e ^certificates -e ^release -e ^inventory")
    _copy(host, "files")
    assert host.check_output("holdfast offsite list | grep -c -e ^certificates -e ^release -e ^inventory") == before
    host.check_output(
        "rm -rf /tmp/fetched; for what in certificates release inventory; do holdfast offsite fetch $what /tmp/fetched/$what; done"
    )
    settings = json.loads(host.check_output(f"cat {SETTINGS}"))
    host.check_output(f"diff --recursive --exclude locks {settings['certificates_path']} /tmp/fetched/certificates")
    host.check_output(f"cmp {settings['app_path']}/live/release.json /tmp/fetched/release/release.json")
    host.check_output(f"mkdir /tmp/fetched/own && tar -C /tmp/fetched/own -xf {settings['inventory_path']}")
    host.check_output("diff --recursive /tmp/fetched/own /tmp/fetched/inventory")


def test_certificates_put_back(host: Host) -> None:
    """Caddy's authority is the same after its storage was lost, so clients still trust it."""
    settings = json.loads(host.check_output(f"cat {SETTINGS}"))
    root = f"{settings['certificates_path']}/pki/authorities/local/root.crt"
    before = host.check_output(f"sha256sum {root}")
    host.check_output(f"timeout 60 systemctl stop caddy.service; rm -rf {settings['certificates_path']}")
    host.check_output("timeout 60 holdfast offsite restore certificates && timeout 60 systemctl start caddy.service")
    assert host.check_output(f"sha256sum {root}") == before
    assert host.file(root).user == settings["certificates_owner"]


def test_nothing_lies_in_the_clear(host: Host) -> None:
    """The bucket's provider reads neither names nor content, and no secret is on a command line or left in memory's folders."""
    settings = json.loads(host.check_output(f"cat {SETTINGS}"))
    unit = host.check_output("systemctl show --property ExecStart holdfast-offsite@dumps.service")
    for secret in (settings["passphrase"], settings["bucket"]["secret_key"]):
        assert secret not in unit
    assert host.check_output("find /run /tmp -ignore_readdir_race -name 'holdfast-rclone-*' -o -name rclone.conf") == ""
    prefix = f"{settings['bucket']['endpoint']}/{settings['bucket']['bucket']}?list-type=2&prefix={settings['path'].lstrip('/')}"
    login = f'user = "{settings["bucket"]["access_key"]}:{settings["bucket"]["secret_key"]}"'
    host.check_output("printf %%s %s > /tmp/bucket-ca.crt", settings["bucket"]["ca"])
    listed = host.check_output(
        f"printf '%s\\n' '{login}' | timeout 30 curl --silent --fail --config - --aws-sigv4 aws:amz:us-east-1:s3 "
        f"--cacert /tmp/bucket-ca.crt 'https://{prefix}'"
    )
    assert "<Key>" in listed
    assert not any(word in listed for word in ("dumps", "smart_audit", "documents/", "certificates"))


def test_wrong_passphrase(host: Host) -> None:
    """A wrong passphrase is told apart from an empty bucket."""
    with _settings(host, passphrase="w" * 32) as option:
        assert "does not open with offsite_passphrase" in _refused(host, option, "list")
    with _settings(host, path="/nobody-wrote-here") as option:
        assert "is empty: nothing was ever copied there" in _refused(host, option, "list")


def test_refused_key_is_loud(host: Host) -> None:
    """A bucket that refuses fails the copy in a sentence, and the metrics say so and keep when it last succeeded."""
    _copy(host, "files")
    last = _metric(host, "certificates", "last_success_timestamp_seconds")
    with _settings(host, secret_key="w" * 32) as option:
        said = _refused(host, option, "copy", "certificates")
    assert "secret key does not belong to the access key" in said
    assert _metric(host, "certificates", "success") == 0
    assert _metric(host, "certificates", "last_success_timestamp_seconds") == last
    _copy(host, "files")
    assert _metric(host, "certificates", "success") == 1


def test_emptied_source_is_no_deletion(host: Host) -> None:
    """A bucket of documents that is suddenly empty does not empty its copy."""
    documents.ask(host, "PUT", f"only-{uuid.uuid4().hex}", "text")
    _copy(host, "files")
    before = host.check_output("holdfast offsite list | grep ^documents/current")
    settings = json.loads(host.check_output(f"cat {SETTINGS}"))
    # The other bucket has nothing at its top but a folder of ours; an unused name of it stands for an emptied one.
    emptied = settings["documents"] | {"bucket": "documents/emptied"}
    with _settings(host, documents=emptied) as option:
        assert "is empty while its copy is not" in _refused(host, option, "copy", "documents")
    assert host.check_output("holdfast offsite list | grep ^documents/current") == before


def test_failed_dump_is_no_dump(host: Host) -> None:
    """A dump that was cut short counts as none, the older one stays the newest, and the next run takes it away."""
    _copy(host, "dumps")
    stamps = "holdfast offsite list | grep -o '^dumps/[^/]*' | sort --unique"
    before = host.check_output(stamps)
    host.check_output("mv /usr/bin/pg_dump /usr/bin/pg_dump.away")
    host.check_output("printf '#!/bin/sh\\necho half; exit 1\\n' > /usr/bin/pg_dump && chmod 755 /usr/bin/pg_dump")
    try:
        assert "pg_dump failed" in _refused(host, "copy", "dumps")
    finally:
        host.check_output("mv /usr/bin/pg_dump.away /usr/bin/pg_dump")
    assert host.check_output(stamps) == before
    _copy(host, "dumps")
    assert _metric(host, "dumps", "success") == 1


def test_killed_copy_has_failed(host: Host) -> None:
    """A copy that is killed with its unit says so in its metrics, and the next one succeeds."""
    unit = "holdfast-offsite@dumps.service"
    wait = "timeout 60 sh -c 'until pgrep --full [r]clone; do sleep 0.05; done'"
    host.check_output(f"systemctl start --no-block {unit}; {wait} && systemctl kill --kill-whom=main --signal=KILL {unit}")
    host.check_output(f"timeout 60 sh -c 'while systemctl list-units --state=activating,deactivating | grep {unit}; do sleep 0.2; done'")
    assert _metric(host, "dumps", "success") == 0
    host.check_output(f"timeout 300 systemctl start {unit}")
    assert _metric(host, "dumps", "success") == 1


def test_one_at_a_time(host: Host) -> None:
    """Two copies that are asked for at once are made one after the other."""
    host.check_output("holdfast offsite copy files >/tmp/one 2>&1 & holdfast offsite copy files >/tmp/two 2>&1; wait $!")
    for name in ("one", "two"):
        assert "certificates: 1 objects" in host.check_output(f"cat /tmp/{name}")


def test_sandbox(host: Host) -> None:
    """The unit is confined: its exposure is at most 3.0."""
    said = host.check_output("systemd-analyze security --no-pager holdfast-offsite@dumps.service").splitlines()[-1]
    assert float(said.split(":")[1].split()[0]) <= 3.0, said
