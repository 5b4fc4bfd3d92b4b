"""Install packages of the distribution on this machine."""

from __future__ import annotations

import shutil

from tools.shell import Failure, run, step


def install(*names: str, programs: bool = False) -> None:
    """Install packages, without what they only recommend.

    Args:
        names: the packages.
        programs: each package is called like its program; those that are there already are left out.

    Raises:
        Failure: this machine has no apt-get.
    """
    missing = [name for name in names if not (programs and shutil.which(name))]
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise Failure(f"Install {', '.join(missing)}: this machine has no apt-get, so it can't be done for you.")
    with step(f"Install {', '.join(missing)}"):
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "update", "-qq"], root=True, env=quiet)
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], root=True, env=quiet)
