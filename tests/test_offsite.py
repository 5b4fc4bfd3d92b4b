"""What `holdfast offsite` decides without a bucket and without a server."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from holdfast import fingerprint, offsite, rclone
from holdfast.failure import Failure
from holdfast.fingerprint import Fingerprint

BUCKET = {"endpoint": "s3.test", "region": "r", "bucket": "backups", "access_key": "k", "secret_key": "s"}


def _print(**buckets: tuple[int, str]) -> Fingerprint:
    return Fingerprint("7", {"public.rows": {name[1:]: value for name, value in buckets.items()}})


@pytest.mark.parametrize(
    ("before", "now", "faults", "changed"),
    [
        pytest.param(_print(b0=(2, "9"), b1=(1, "4")), _print(b0=(2, "9"), b1=(1, "4")), 0, 0, id="the same"),
        pytest.param(_print(b0=(2, "9"), b1=(1, "4")), _print(b0=(2, "9")), 0, 1, id="one deleted"),
        pytest.param(_print(b0=(2, "9")), _print(b0=(2, "8")), 1, 0, id="another content"),
        pytest.param(_print(b0=(2, "9")), _print(b0=(1, "5"), b1=(1, "3")), 1, 0, id="moved to another bucket"),
        pytest.param(_print(b0=(2, "9")), Fingerprint("7", {}), 0, 2, id="table dropped"),
    ],
)
def test_fingerprints(before: Fingerprint, now: Fingerprint, faults: int, changed: int) -> None:
    """Rows that were changed or deleted are counted; rows that are other than they were are a fault."""
    assert len(list(fingerprint.faults(before, now))) == faults
    assert fingerprint.changed(before, now) == changed
    assert Fingerprint.read(json.loads(json.dumps(before.dump()))) == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param("", "can't be read", id="empty"),
        pytest.param('{"bucket": {}}', "can't be read", id="half"),
        pytest.param(json.dumps({"bucket": BUCKET, "path": "/x", "passphrase": "p", "else": 1}), "can't be read", id="unknown"),
    ],
)
def test_bad_settings(tmp_path: Path, content: str, words: str) -> None:
    """Settings that can't be read are told in a sentence with the way out."""
    path = tmp_path / "offsite.json"
    path.write_text(content)
    with pytest.raises(Failure, match=words) as found:
        offsite.Settings.read(path)
    assert "ansible-playbook site.yml --tags offsite" in str(found.value)
    with pytest.raises(Failure, match="is missing"):
        offsite.Settings.read(tmp_path / "none")


def test_settings_hide_secrets() -> None:
    """A passphrase does not show where settings are printed."""
    settings = offsite.Settings(rclone.Bucket(**BUCKET), "/offsite", "a-passphrase", repository_passphrase="another-one")  # noqa: S106 - made up
    assert "a-passphrase" not in repr(settings)
    assert "another-one" not in repr(settings)


def test_sealed_list(tmp_path: Path) -> None:
    """What pgBackRest encrypts opens with its passphrase, and with no other."""
    sealed = subprocess.run(
        ["openssl", "enc", "-aes-256-cbc", "-md", "sha1", "-pass", "pass:right"], input=b"[backrest]\n", check=True, capture_output=True
    ).stdout
    assert offsite._open_sealed(sealed, "right") == "[backrest]\n"
    assert not offsite._open_sealed(sealed, "wrong").startswith("[")


def test_archive_is_stable(tmp_path: Path) -> None:
    """A folder is packed into the same bytes from the same files, and comes out as it went in."""
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "a").mkdir(parents=True)
    (source / "a" / "b").write_text("content")
    (source / "locks").mkdir()
    packed = offsite._archive(source, leave_out=("locks",))
    assert packed == offsite._archive(source, leave_out=("locks",))
    offsite.extract(packed, target)
    assert (target / "a" / "b").read_text() == "content"
    assert not (target / "locks").exists()


def test_age() -> None:
    """A copy's age is read from its name, and a name that is not ours is never too old."""
    name = time.strftime(offsite.STAMP, time.gmtime(time.time() - 3 * 86400))
    assert 2.99 < offsite._age_days(name) < 3.01
    assert 2.99 < offsite._age_days(f"{name}-0123456789abcdef") < 3.01
    assert offsite._age_days("somebody-elses") == 0


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("status code: 403 SignatureDoesNotMatch", "secret key does not belong"),
        ("x509: certificate signed by unknown authority", "authority"),
        ("dial tcp: lookup s3.test: no such host", "name of the bucket's service is unknown"),
        ("something else\nthe last line.", "the last line."),
        ("", "it gave no reason"),
    ],
)
def test_reasons(said: str, words: str) -> None:
    """Why rclone failed is one sentence."""
    text = rclone.reason("sync", said)
    assert words in text
    assert text.endswith(".") and not text.endswith("..")
