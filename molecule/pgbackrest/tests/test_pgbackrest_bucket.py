"""What the key on the host can't do to the past: each attempt is made on the real object store, and its answer is in docs/bucket.md."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import past
import pytest
from botocore.exceptions import ClientError
from database import ask
from testinfra.host import Host

from tools import bucket
from tools.application import wait_until
from tools.page import commands
from tools.shell import ROOT
from tools.writer import Writer

BUCKET = bucket.BUCKET
PAGE = ROOT / "docs" / "bucket.md"
BACK, EXAMPLE = "Bring a destroyed past back", "2026-11-23 10:15:00+00"
HELD = "SELECT id FROM written"
EXPIRE = {"Rules": [{"ID": "all", "Status": "Enabled", "Filter": {"Prefix": ""}, "NoncurrentVersionExpiration": {"NoncurrentDays": 1}}]}
OPEN = {
    "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{BUCKET}/*"}],
    "Version": "2012-10-17",
}


@pytest.fixture(name="thief")
def _thief(host_name: str) -> Any:
    """Return a client with the key that lies on the host."""
    return bucket.client(host_name, bucket.ACCESS_KEY)


@pytest.fixture(name="version")
def _version(thief: Any) -> dict[str, str]:
    """Name a version of an object of a backup."""
    listed = thief.list_object_versions(Bucket=BUCKET, Prefix="pgbackrest/backup/main/backup.info")["Versions"]
    return {"Key": listed[0]["Key"], "VersionId": listed[0]["VersionId"]}


def _retention(days: int) -> dict[str, Any]:
    return {"Mode": "COMPLIANCE", "RetainUntilDate": dt.datetime.now(dt.UTC) + dt.timedelta(days=days)}


@pytest.mark.parametrize(
    ("attempt", "status"),
    [
        pytest.param(lambda s3, version: s3.delete_object(Bucket=BUCKET, **version), 403, id="delete a version"),
        pytest.param(
            lambda s3, version: s3.delete_object(Bucket=BUCKET, BypassGovernanceRetention=True, **version),
            403,
            id="delete it past governance",
        ),
        pytest.param(
            lambda s3, version: s3.put_object_retention(Bucket=BUCKET, **version, Retention=_retention(0)), 403, id="shorten its retention"
        ),
        pytest.param(
            lambda s3, _: s3.put_object_lock_configuration(Bucket=BUCKET, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled"}),
            403,
            id="drop the default retention",
        ),
        pytest.param(
            lambda s3, _: s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Suspended"}),
            409,
            id="suspend versions",
        ),
        pytest.param(
            lambda s3, _: s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration=EXPIRE), 403, id="let versions expire"
        ),
        pytest.param(lambda s3, _: s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(OPEN)), 403, id="open the bucket"),
        pytest.param(lambda s3, _: s3.delete_bucket_policy(Bucket=BUCKET), 403, id="drop the policy"),
        pytest.param(lambda s3, _: s3.delete_bucket(Bucket=BUCKET), 403, id="delete the bucket"),
    ],
)
def test_key_is_refused(thief: Any, version: dict[str, str], attempt: Callable[[Any, dict[str, str]], object], status: int) -> None:
    """The key on the host is refused whatever would destroy an old version."""
    with pytest.raises(ClientError) as refused:
        attempt(thief, version)
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert thief.head_object(Bucket=BUCKET, **version)["ResponseMetadata"]["HTTPStatusCode"] == 200


def test_destroyed_past_comes_back(host: Host, host_name: str, thief: Any) -> None:
    """With the host's key every object is deleted and the list of backups overwritten: the page brings the past back."""
    with Writer(host_name) as writer:
        writer.wait(200)
    past.archived(host)
    host.check_output("timeout 300 systemctl start holdfast-backup@incr.service")
    moment = host.check_output("sleep 2; date --utc '+%Y-%m-%d %H:%M:%S+00'; sleep 2")
    ask(host, "INSERT INTO written VALUES (-1, 'after that moment')")
    past.archived(host)

    pages = thief.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="pgbackrest/")
    keys = [each["Key"] for page in pages for each in page.get("Contents", [])]
    for key in keys:
        if key.endswith("backup.info"):
            thief.put_object(Bucket=BUCKET, Key=key, Body=b"gone")
        else:
            thief.delete_object(Bucket=BUCKET, Key=key)
    assert host.run("runuser -u postgres -- pgbackrest --stanza=main restore --pg1-path=/nonexistent").rc != 0

    typed = commands(PAGE, BACK)
    assert sum(EXAMPLE in command for command in typed) == 2
    try:
        for command in typed:
            past.follow(host, host_name, command.replace(EXAMPLE, moment))
        wait_until(lambda: ask(host, "SELECT pg_is_in_recovery()") == "f", "the end of recovery", past.RECOVERY_SECONDS)
        held = ask(host, HELD)
        assert not writer.missing(held)
        assert "-1" not in held.split()
    finally:
        _put_back(thief, dt.datetime.fromisoformat(moment))
        # The page has site.yml do it.
        host.check_output("systemctl start holdfast-backups.target")
    past.archived(host)
    assert not writer.missing(past.restored(host, HELD))


def _put_back(s3: Any, moment: dt.datetime) -> None:
    """Undo what was done after a moment, as docs/bucket.md says: markers are removed, and old content is put again."""
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=BUCKET, Prefix="pgbackrest/"):
        for marker in page.get("DeleteMarkers", []):
            if marker["LastModified"] > moment:
                s3.delete_object(Bucket=BUCKET, Key=marker["Key"], VersionId=marker["VersionId"])
        for version in page.get("Versions", []):
            if version["LastModified"] > moment and version["Key"].endswith("backup.info"):
                older = [each for each in page["Versions"] if each["Key"] == version["Key"] and each["LastModified"] <= moment]
                newest = max(older, key=lambda each: each["LastModified"])
                body = s3.get_object(Bucket=BUCKET, Key=newest["Key"], VersionId=newest["VersionId"])["Body"].read()
                s3.put_object(Bucket=BUCKET, Key=newest["Key"], Body=body)
