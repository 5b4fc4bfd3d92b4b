"""What `holdfast offsite` decides without a bucket and without a server."""

from __future__ import annotations

import argparse
import io
import json
import math
import subprocess
import tarfile
import time
from pathlib import Path
from typing import cast
from unittest.mock import MagicMock

import pytest

from holdfast import fingerprint, metrics, offsite, postgres, rclone
from holdfast.failure import Failure
from holdfast.fingerprint import Fingerprint

BUCKET = {"endpoint": "s3.test", "region": "r", "bucket": "backups", "access_key": "k", "secret_key": "s"}
SINCE = 1_795_600_000.0  # 2026-11-25 09:46:40+00
STAMPS = [time.strftime(offsite.STAMP, time.gmtime(SINCE + seconds)) for seconds in (60, 120)]


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


@pytest.fixture
def succeeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every part a copy that succeeded, and return a file of settings; rclone is not installed."""
    path = tmp_path / "offsite.json"
    path.write_text(json.dumps({"bucket": BUCKET, "path": "/x", "passphrase": "p"}))
    monkeypatch.setattr(metrics, "FOLDER", tmp_path)
    monkeypatch.setattr(offsite, "SETTINGS", path)
    monkeypatch.setenv("PATH", str(tmp_path))
    for what in offsite.WHAT:
        offsite._record(what, offsite.Copied(3, 7), 1)
    return path


def _failed() -> list[str]:
    """Name the parts whose last copy failed."""
    return [what for what in offsite.WHAT if not metrics.read(f"offsite_{what}")[f'holdfast_offsite_success{{what="{what}"}}']]


def _copy(path: Path, *what: str, ended: bool = False) -> None:
    offsite._copy(argparse.Namespace(settings=path, what=what, ended=ended))


def test_what_fails_before_a_copy_is_recorded(succeeded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the lock, rclone or the settings keep every copy from being tried, each that was wanted has failed."""
    with pytest.raises(Failure, match="rclone is not installed"):
        _copy(succeeded, "dumps")
    assert _failed() == ["dumps"]
    succeeded.write_text("")
    with pytest.raises(Failure, match="can't be read"):
        _copy(succeeded, "files")
    assert _failed() == list(offsite.WHAT)
    assert metrics.read("offsite_documents")['holdfast_offsite_objects{what="documents"}'] == 3
    monkeypatch.setattr(metrics, "FOLDER", succeeded)
    with pytest.raises(Failure, match="can't be read"):
        _copy(succeeded, "files")


@pytest.mark.parametrize(("result", "failed"), [("oom-kill", ["dumps"]), ("timeout", ["dumps"]), ("exit-code", []), ("success", [])])
def test_copy_that_was_ended_is_recorded(succeeded: Path, monkeypatch: pytest.MonkeyPatch, result: str, failed: list[str]) -> None:
    """A copy that was killed has failed; of one that ended by itself nothing is recorded twice."""
    monkeypatch.setenv("SERVICE_RESULT", result)
    _copy(succeeded, "dumps", ended=True)
    assert _failed() == failed


def test_settings_hide_secrets() -> None:
    """A passphrase does not show where settings are printed."""
    settings = offsite.Settings(rclone.Bucket(**BUCKET), "/offsite", "a-passphrase", repository_passphrase="another-one")  # noqa: S106 - made up
    assert "a-passphrase" not in repr(settings)
    assert "another-one" not in repr(settings)


@pytest.mark.parametrize("opened", [[], ["\x10\x83z"]])
def test_names_by_chance(opened: list[str]) -> None:
    """A name that a wrong passphrase turns into another by chance does not make it the right one."""
    tool = MagicMock()
    copies = offsite.Offsite(offsite.Settings(rclone.Bucket(**BUCKET), "/offsite", "p"), tool)
    tool.names.side_effect = [["q2hf", "t0n1"], ["dumps", "release"], ["q2hf", "t0n1"], opened]
    copies.check()
    with pytest.raises(Failure, match="does not open with offsite_passphrase"):
        copies.check()


@pytest.mark.parametrize(
    ("then", "again"),
    [
        pytest.param([7, "2026-11-25T09:40:00Z"], [], id="the same"),
        pytest.param([8, "2026-11-25T09:40:00Z"], ["name"], id="another size"),
        pytest.param([7, "2026-11-25T09:45:00.5Z"], ["name"], id="another time"),
        pytest.param(None, [], id="new"),
    ],
)
def test_replaced_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: list[object] | None, again: list[str]) -> None:
    """A document that is not the one of the last copy is copied whatever its copy's time; a new one, or one of another bucket, is not."""
    monkeypatch.setattr(offsite, "LISTED", tmp_path / "documents.json")
    monkeypatch.setattr(time, "time", lambda: SINCE)
    tool = MagicMock()
    tool.names.return_value = []

    def copied(bucket: str, **documents: list[object]) -> list[str]:
        tool.reset_mock()
        tool.entries.return_value = [{"Path": name, "Size": size, "ModTime": at} for name, (size, at) in documents.items()]
        settings = offsite.Settings(rclone.Bucket(**BUCKET), "/offsite", "p", documents=rclone.Bucket(**{**BUCKET, "bucket": bucket}))
        offsite.Offsite(settings, tool)._copy_documents()
        assert [call.args[0] for call in tool.run.call_args_list][-1] == "sync"
        return [name for call in tool.run.call_args_list if call.args[0] == "copy" for name in call.kwargs["stdin"].split("\n")]

    assert copied("documents", other=[1, "2026-11-25T09:00:00Z"], **({"name": then} if then else {})) == []
    assert copied("documents", name=[7, "2026-11-25T09:40:00Z"]) == again
    assert copied("documents", name=[7, "2026-11-25T09:40:00Z"]) == []
    assert copied("documents", name=[7, "2026-11-25T09:46:38Z"]) == ["name"]
    assert copied("documents", name=[7, "2026-11-25T09:46:38Z"]) == ["name"], "it was written within the seconds before"
    assert copied("others", name=[9, "2026-11-25T09:46:38Z"]) == []


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
    (source / "a" / "link").symlink_to("b")
    (source / "locks").mkdir()
    packed = offsite._archive(source, leave_out=("locks",))
    assert packed == offsite._archive(source, leave_out=("locks",))
    offsite.extract(packed, target)
    assert (target / "a" / "b").read_text() == "content"
    assert (target / "a" / "link").readlink() == Path("b")
    assert not (target / "locks").exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../beside", tarfile.REGTYPE),
        ("/beside", tarfile.REGTYPE),
        ("link", tarfile.SYMTYPE),
        ("link", tarfile.LNKTYPE),
        ("x", tarfile.CHRTYPE),
    ],
)
def test_archive_of_somebody_else(name: str, kind: bytes, tmp_path: Path) -> None:
    """What would land beside the folder, or lead out of it, is refused, and nothing is unpacked."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("good"))
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc"
        archive.addfile(member)
    with pytest.raises(Failure, match="does not lie in its own folder"):
        offsite.extract(buffer.getvalue(), tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_age() -> None:
    """A copy's age is read from its name, and a name that is not ours is never too old."""
    name = time.strftime(offsite.STAMP, time.gmtime(time.time() - 3 * 86400))
    assert 2.99 < offsite._age_days(name) < 3.01
    assert 2.99 < offsite._age_days(f"{name}-0123456789abcdef") < 3.01
    assert offsite._age_days("somebody-elses") == 0


class _Bucket:
    """Holds two copies of everything, of one minute past and of two."""

    def entries(self, _: str, *, recursive: bool = False) -> list[dict[str, str]]:
        return [{"Path": f"{stamp}/{offsite.MANIFEST}"} for stamp in (STAMPS if recursive else [])]

    def names(self, _: str) -> list[str]:
        return [f"{stamp}-0123456789abcdef" for stamp in STAMPS]

    def read(self, path: str) -> bytes:
        return json.dumps(path).encode()


def test_dump_says_where_its_past_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dump records the timeline and the position of its checksums, so that a rebuild knows whether they are of its own past."""
    tool = MagicMock()
    tool.names.return_value = []
    monkeypatch.setattr(fingerprint, "databases", list)
    monkeypatch.setattr(postgres, "psql", lambda _: json.dumps(["0000000B", "2/AB000028"]))
    offsite.Offsite(offsite.Settings(rclone.Bucket(**BUCKET), "/offsite", "p"), tool)._copy_dumps()
    assert json.loads(tool.write.call_args.args[1])["position"] == {"timeline": 11, "lsn": "2/AB000028"}


@pytest.mark.parametrize(("until", "newest"), [(math.inf, 1), (SINCE + 90, 0)])
def test_copies_of_before_a_moment(until: float, newest: int) -> None:
    """What a rebuilt host has copied since is not taken for what the lost one had."""
    copies = offsite.Offsite(offsite.Settings(rclone.Bucket(**BUCKET), "/offsite", "p"), cast("rclone.Rclone", _Bucket()), until)
    assert copies.dumps() == STAMPS[: newest + 1]
    assert STAMPS[newest] in str(copies.manifest())
    assert STAMPS[newest].encode() in copies.newest("release")


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


@pytest.mark.parametrize("what", ["release", "dumps"])
def test_what_is_fetched_is_its_owner_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Nobody else reads a copy that was brought into a folder, whatever umask the program has."""
    opened = MagicMock()
    opened.return_value.__enter__.return_value.newest.return_value = b"{}"
    monkeypatch.setattr(offsite, "offsite", opened)
    offsite.fetch(offsite.Settings(rclone.Bucket(**BUCKET), "/offsite", "p"), what, tmp_path / "fetched")
    assert (tmp_path / "fetched").stat().st_mode & 0o777 == 0o700
