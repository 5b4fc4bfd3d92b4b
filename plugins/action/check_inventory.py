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
TEMPLATE = re.compile(r"\{[{%].*", re.DOTALL)
KINDS = {
    "str": "text",
    "path": "a path",
    "int": "a whole number (int)",
    "float": "a number (float)",
    "bool": "true or false (bool)",
    "list": "a list",
    "dict": "a mapping of names to values (dict)",
}
# What Ansible makes of the part after the blank in `-e NAME='VALUE VALUE'`, and the inputs whose roles put it together again.
SPLIT = {"_raw_params": ("restore_target", "disaster_recovery_target")}
# Variables that Ansible, or a tool that calls it, puts into every play.
FOREIGN = re.compile(
    r"^(ansible_|molecule_|inventory_|role_|playbook_dir|group_names$|groups$|hostvars$|omit$|play_hosts$|environment$|vars$|discovered_)"
)


class ActionModule(ActionBase):
    """Fail with one line for each variable that is missing, unknown, of the wrong type, a placeholder or a weak secret.

    It needs no connection. Before facts are gathered it leaves out what can't be known without them.
    """

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

        found = {"ansible_host": _wrong("ansible_host", {"type": "str"}, variables.get("ansible_host", ""))}
        for role in roles:
            found |= self._check_role(all_specs.get(role, {}), variables)
        found = {name: text for name, text in found.items() if text}
        # A value that is made from a bad one is not a second fault.
        own = [text for name, text in found.items() if not _made_from(name, found.keys() - {name}, variables)]
        faults = [*_unknown(variables, all_specs), *own]
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

    def _check_role(self, options: dict[str, dict[str, Any]], variables: dict[str, Any]) -> dict[str, str]:
        """Return one sentence for each input of a role that is wrong."""
        faults = {}
        for name, option in options.items():
            try:
                value = self._templar.template(variables[name]) if name in variables else None
            except AnsibleError as error:
                if not variables.get("ansible_facts", {}).get("distribution"):
                    continue  # it may be made from facts; the same check runs again once they are there
                faults[name] = f"{name} has no value: {_short(error)}: define that, or write another value."
                continue
            if text := _missing(name, option) if value is None else _wrong(name, option, value):
                faults[name] = text
        return faults


def _missing(name: str, option: dict[str, Any]) -> str:
    way = "run `make secrets`" if option.get("no_log") else "write it in the inventory"
    return f"{name} is missing: {way} ({_sentence(option['description'])})." if option.get("required") else ""


def _wrong(name: str, option: dict[str, Any], value: Any) -> str:
    secret = option.get("no_log")
    if secret and isinstance(value, str) and len(value) < SECRET_LENGTH:
        return f"{name} is a secret of {len(value)} characters: write at least {SECRET_LENGTH}, or let `make secrets` write it."
    if held := next((text for text in _strings(value) if PLACEHOLDER.search(text)), None):
        shown = "a placeholder" if secret else f"the placeholder '{held}'"
        return f"{name} still holds {shown}: write your own value in the inventory."
    if text := next(_no_lists(name, option, value), ""):
        return text
    messages = ArgumentSpecValidator({name: {**option, "no_log": False}}).validate({name: value}).error_messages
    if not messages:
        return ""
    shown = "of the wrong kind" if secret else repr(value)
    if option.get("choices"):
        return f"{name} is {shown}: write one of {', '.join(map(str, option['choices']))}."
    if "options" not in option or f"argument '{name}'" in messages[0]:
        return f"{name} is {shown}: write {KINDS.get(option['type'], option['type'])}."
    # The fault is in a part of it, and Ansible says in which.
    if unsupported := re.match(r"(?P<part>\S+)\. Supported parameters include: (?P<known>.*)", messages[0]):
        return f"{unsupported['part']} is unknown: write one of {unsupported['known'].rstrip('.')}."
    return f"{name} is wrong: {'' if secret else messages[0].rstrip('.') + '; '}see {name} in the README of its role."


def _no_lists(name: str, option: dict[str, Any], value: Any) -> Iterator[str]:
    """Say which parts of a value are no list and have to be one.

    Ansible's validator takes a text for a list of what its commas part, in its own copy only; a template reads it letter by letter.
    """
    if option["type"] == "list" and isinstance(value, str):
        shown = "of the wrong kind" if option.get("no_log") else repr(value)
        yield f"{name} is {shown}: write {KINDS['list']}, each entry on a line of its own after a dash."
        return
    for entry in value if isinstance(value, list | tuple) else [value]:
        if isinstance(entry, dict):
            for part, its_option in (option.get("options") or {}).items():
                yield from _no_lists(f"{name}.{part}", its_option, entry.get(part))


def _options(path: Path) -> dict[str, dict[str, Any]]:
    specs: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]
    return dict(specs["main"].get("options") or {})


def _unknown(variables: dict[str, Any], specs: dict[str, dict[str, Any]]) -> Iterator[str]:
    known = {name for options in specs.values() for name in options}
    reserved = get_reserved_names()
    for name in sorted(variables):
        if any(variables.get(each) for each in SPLIT.get(name, ())):
            continue
        if name in known or name in reserved or name.startswith("__") or FOREIGN.match(name):
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        way = f"did you mean {close[0]}?" if close else "no role has such an input; take it out, or declare it in argument_specs.yml."
        yield f"{name} is unknown: {way}"


def _made_from(name: str, others: set[str], variables: dict[str, Any]) -> bool:
    """Say whether a variable, as it is written, is a template of one of the others, be it by way of internals (`__x`)."""
    followed = waiting = {name}
    while waiting:
        texts = [text for each in waiting for text in _strings(variables.get(each))]
        mentioned = {word for text in texts for part in TEMPLATE.findall(text) for word in re.findall(r"\w+", part)}
        if mentioned & others:
            return True
        waiting = {word for word in mentioned if word.startswith("__")} - followed
        followed = followed | waiting
    return False


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
    return str(error).strip().splitlines()[0].rstrip(".")
