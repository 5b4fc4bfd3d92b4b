"""Check an inventory against the argument specs of a play's roles, before any host is touched."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible.vars.reserved import get_reserved_names

PLACEHOLDER = re.compile(r"\bexample\.(?:com|org|net)\b|\bCHANGE[_-]?ME\b|\bREPLACE[_-]?ME\b|<[a-z_ -]+>", re.IGNORECASE)
# Upstream: NIST SP 800-63B asks for 8 characters of what a person picks; these are made by a machine and guard a host.
SECRET_LENGTH = 16
# Variables that Ansible, or a tool that calls it, puts into every play.
FOREIGN = re.compile(
    r"^(ansible_|molecule_|inventory_|role_|playbook_dir|group_names$|groups$|hostvars$|omit$|play_hosts$|environment$|vars$|discovered_)"
)


class ActionModule(ActionBase):
    """Fail with one line for each variable that is missing, unknown, of the wrong type, a placeholder or a weak secret."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Check all roles of the play; the result carries `faults`, one sentence each."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        roles = [role for role in variables["ansible_play_role_names"] if self._applies(role, variables)]
        folder = Path(variables["role_path"]).parent
        all_specs = {path.parent.parent.name: _options(path) for path in sorted(folder.glob("*/meta/argument_specs.yml"))}

        faults = list(_unknown(variables, all_specs))
        for role in roles:
            faults += self._check_role(all_specs.get(role, {}), variables)
        if faults:
            result["failed"] = True
            result["faults"] = faults
            result["msg"] = f"Nothing was changed on {variables['inventory_hostname']}. " + " ".join(faults)
        result["changed"] = False
        return result

    @staticmethod
    def _applies(role: str, variables: dict[str, Any]) -> bool:
        """Say whether a role runs on this host: a role with a group of its name runs only there."""
        return role not in variables["groups"] or role in variables["group_names"]

    def _check_role(self, options: dict[str, dict[str, Any]], variables: dict[str, Any]) -> Iterator[str]:
        given: dict[str, Any] = {}
        undefined: set[str] = set()
        for name, option in options.items():
            if name not in variables:
                continue
            try:
                given[name] = self._templar.template(variables[name])
            except AnsibleError as error:
                undefined.add(name)
                yield f"{name} has no value: {_short(error)}"
                continue
            if option.get("no_log") and isinstance(given[name], str):
                if len(given[name]) < SECRET_LENGTH:
                    yield (
                        f"{name} is a secret of {len(given[name])} characters: write at least {SECRET_LENGTH}, "
                        "or let `make secrets` write it."
                    )
                    continue
            for text in _strings(given[name]):
                if PLACEHOLDER.search(text):
                    shown = "a placeholder" if option.get("no_log") else f"the placeholder '{text}'"
                    yield f"{name} still holds {shown}: write your own value in the inventory."
                    break
        for name, option in options.items():
            if option.get("required") and given.get(name) is None and name not in undefined:
                way = "run `make secrets`" if option.get("no_log") else "write it in the inventory"
                yield f"{name} is missing: {way} ({_sentence(option['description'])})."
        present = {name: option for name, option in options.items() if name in given}
        validator = ArgumentSpecValidator({name: {**option, "no_log": False} for name, option in present.items()})
        for message in validator.validate(given).error_messages:
            named = next((name for name in sorted(present, key=len, reverse=True) if name in message), "")
            shown = "" if not named or present[named].get("no_log") else f" (it is {given[named]!r})"
            text = message if not (named and present[named].get("no_log")) else f"{named} has the wrong type"
            yield f"{text}{shown}: see the README of its role."


def _options(path: Path) -> dict[str, dict[str, Any]]:
    specs: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]
    return dict(specs["main"].get("options") or {})


def _unknown(variables: dict[str, Any], specs: dict[str, dict[str, Any]]) -> Iterator[str]:
    known = {name for options in specs.values() for name in options}
    reserved = get_reserved_names()
    for name in sorted(variables):
        if name in known or name in reserved or name.startswith("__") or FOREIGN.match(name):
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        way = f"did you mean {close[0]}?" if close else "no role has such an input; take it out, or declare it in the role's argument_specs.yml."
        yield f"{name} is unknown: {way}"


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _sentence(description: str | list[str]) -> str:
    text = description if isinstance(description, str) else description[0]
    return text.strip().rstrip(".")


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") + "."
