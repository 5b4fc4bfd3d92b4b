"""What the module pgbackrest_repository says of repositories, and of a cluster that a restore has left half done."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from plugins.module_utils import s3
from tools.shell import ROOT

PASSPHRASE, CLUSTER = "p" * 20, "7512345678901234567"


class Told(Exception):
    """What the module ends with."""


@pytest.fixture(name="module")
def _module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Load the module as Ansible does, with the module_utils of this repository."""
    monkeypatch.setitem(sys.modules, "ansible.module_utils.s3", s3)
    spec = importlib.util.spec_from_file_location("pgbackrest_repository", ROOT / "plugins" / "modules" / "pgbackrest_repository.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def look(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *, warnings: list[str] | None = None, **given: Any) -> list[str]:
    """Run the module, and return the faults that it tells."""

    class Ansible:
        def __init__(self, **_: object) -> None:
            self.check_mode = False
            self.params = {"passphrase": PASSPHRASE, "stanza": "main", "adopt": False, "timeout_seconds": 1, **given}

        def warn(self, text: str) -> None:
            (warnings if warnings is not None else []).append(text)

        def exit_json(self, *, changed: bool, faults: list[str]) -> None:
            assert not changed
            raise Told(faults)

    monkeypatch.setattr(module, "AnsibleModule", Ansible)
    with pytest.raises(Told) as told:
        module.main()
    faults: list[str] = told.value.args[0]
    return faults


def repository(folder: Path, passphrase: str = PASSPHRASE, *, backup: bool = True) -> dict[str, str]:
    """Make a repository in a folder, as pgBackRest encrypts one."""
    files = {"archive": f"[db]\ndb-id=1\ndb-system-id={CLUSTER}\n", "backup": "[backup:current]\n20261126-010203F={}\n"}
    for what, content in files.items():
        if what == "archive" or backup:
            file = folder / what / "main" / f"{what}.info"
            file.parent.mkdir(parents=True)
            words = ["openssl", "enc", "-aes-256-cbc", "-md", "sha1", "-pass", f"pass:{passphrase}", "-out", str(file)]
            subprocess.run(words, check=True, capture_output=True, input=content.encode())
    return {"type": "posix", "path": str(folder)}


@pytest.fixture(name="half")
def _half(module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a data directory without its control file, and return it."""
    data, program = tmp_path / "data", tmp_path / "pg_controldata"
    data.mkdir()
    (data / "PG_VERSION").touch()
    program.write_text("#!/bin/sh\necho 'pg_controldata: error: could not open file \"global/pg_control\"' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(module, "CONTROL_DATA", str(program))
    return data


def test_half_a_cluster(module: ModuleType, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that a restore has left half done is told in a sentence; where it is about to be replaced it is as good as none."""
    held = [repository(tmp_path / "held")]
    (said,) = look(module, monkeypatch, data=str(half), repositories=held)
    assert said.startswith(f"{half} does not say which database it holds (pg_controldata: error: could not open file")
    assert "`holdfast restore status` on the host says how to go on" in said
    assert look(module, monkeypatch, data=str(half), repositories=held, adopt=True) == []


@pytest.fixture(name="away")
def _away(tmp_path: Path) -> dict[str, str]:
    """Have a repository that can't be read: its path goes through a file."""
    (tmp_path / "file").touch()
    return {"type": "posix", "path": str(tmp_path / "file" / "away")}


def test_rebuild_goes_on_without_a_repository_that_is_away(
    module: ModuleType, tmp_path: Path, away: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one repository has is brought back while another is away, which is named; a host that keeps its own past is refused."""
    given: dict[str, Any] = {"data": str(tmp_path / "none"), "repositories": [away, repository(tmp_path / "held")]}
    warnings: list[str] = []
    assert look(module, monkeypatch, warnings=warnings, adopt=True, **given) == []
    (warning,) = warnings
    assert warning.startswith(
        f"pgbackrest_repositories has '{away['path']}', which can't be used: {away['path']}/archive/main/archive.info"
    )
    assert warning.endswith("What only it holds is not brought back.")
    assert "it can't be used" in look(module, monkeypatch, **given)[0]


def test_unreachable_bucket_is_away(module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket that takes no connection is away like a folder that can't be read."""
    gone = {"type": "s3", "path": "/p", "bucket": "b", "endpoint": "127.0.0.1:9", "region": "r", "access_key": "k", "secret_key": "s"}
    warnings: list[str] = []
    held = repository(tmp_path / "held")
    assert look(module, monkeypatch, warnings=warnings, adopt=True, data=str(tmp_path / "none"), repositories=[gone, held]) == []
    assert "'b:/p'" in warnings[0] and "https://127.0.0.1:9 took no request" in warnings[0]


@pytest.mark.parametrize(
    ("passphrase", "backup", "said"),
    [
        pytest.param(PASSPHRASE, False, "nothing to bring back: ", id="no backup anywhere"),
        pytest.param("w" * 20, True, "encrypted with another passphrase", id="wrong passphrase"),
    ],
)
def test_rebuild_needs_one_backup(
    module: ModuleType,
    tmp_path: Path,
    away: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    passphrase: str,
    backup: bool,  # noqa: FBT001 - a case
    said: str,
) -> None:
    """Where no repository has a backup, or one does not open, nothing is begun."""
    other = repository(tmp_path / "held", passphrase, backup=backup)
    warnings: list[str] = []
    (fault,) = look(module, monkeypatch, warnings=warnings, adopt=True, data=str(tmp_path / "none"), repositories=[away, other])
    assert said in fault and warnings == []
    if not backup:
        assert f"'{other['path']}' holds no backup" in fault and f"'{away['path']}' can't be used" in fault
