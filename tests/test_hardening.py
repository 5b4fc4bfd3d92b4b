"""What waivers and other inputs make of the files and modes of the role hardening."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tools.shell import ROOT

ROLE = ROOT / "roles" / "hardening"
# As Ansible reads templates.
JINJA = Environment(loader=FileSystemLoader(ROLE / "templates"), trim_blocks=True, undefined=StrictUndefined)  # noqa: S701  # no HTML
CONTROLS = yaml.safe_load((ROLE / "files" / "controls.yml").read_text(encoding="utf-8"))
INTERNALS = yaml.safe_load((ROLE / "vars" / "main.yml").read_text(encoding="utf-8"))
# What Debian 13's own file sets of what the controls set.
DEBIAN = {"ENCRYPT_METHOD": "YESCRYPT", "HOME_MODE": "0700", "UMASK": "022"}
REASON = "A test of it."


def login_defs(*waived: str) -> dict[str, str]:
    """Return the settings of /etc/login.defs; one that stands there twice is a fault."""
    given: dict[str, Any] = {"ansible_managed": "", "hardening_waivers": dict.fromkeys(waived, REASON), "__hardening_controls": CONTROLS}
    lines = JINJA.get_template("login.defs.j2").render(given).splitlines()
    settings = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert len({name for name, _ in settings}) == len(settings)
    return dict(settings)


def overrides(waivers: dict[str, str], privileged: dict[str, str]) -> dict[str, str]:
    """Return which files keep a mode of ours: path → present or absent."""
    given = {"hardening_waivers": waivers, "hardening_privileged_files": privileged, "__hardening_modes": INTERNALS["__hardening_modes"]}
    found: list[dict[str, str]] = ast.literal_eval(JINJA.from_string(INTERNALS["__hardening_overrides"]).render(given).strip())
    return {each["path"]: each["state"] for each in found}


@pytest.mark.parametrize("waived", [(), ("HF-AUTH-03",), ("HF-AUTH-04",), ("HF-AUTH-03", "HF-AUTH-04")])
def test_waived_control_leaves_what_debian_has(waived: tuple[str, ...]) -> None:
    found = login_defs(*waived)
    assert DEBIAN.keys() <= found.keys()
    assert found["ENCRYPT_METHOD"] == DEBIAN["ENCRYPT_METHOD"]
    assert found["HOME_MODE"] == DEBIAN["HOME_MODE"]
    assert found["UMASK"] == (DEBIAN["UMASK"] if "HF-AUTH-04" in waived else "027")
    assert ("YESCRYPT_COST_FACTOR" in found) == ("HF-AUTH-03" not in waived)


def test_named_program_keeps_its_bit() -> None:
    """A name leaves a program its bit, and opens no file of HF-FILE-01."""
    found = overrides({}, {"/usr/bin/chfn": REASON, "/etc/crontab": REASON})
    assert [path for path, state in found.items() if state == "absent"] == ["/usr/bin/chfn"]


def test_waiver_leaves_every_bit() -> None:
    found = overrides({"HF-FILE-02": REASON}, {})
    assert {path for path, state in found.items() if state == "absent"} == set(INTERNALS["__hardening_modes"]["HF-FILE-02"])
