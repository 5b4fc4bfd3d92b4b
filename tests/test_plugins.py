"""The action plugins refuse and check_inventory: what they say, and that they say it for each host on its own."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest
import yaml

from plugins.action import check_inventory
from tools.shell import ROOT, VENV_BIN

SPECS = {
    "one": {
        "one_name": {"type": "str", "required": True, "description": "Name of the thing."},
        "one_password": {"type": "str", "required": True, "no_log": True, "description": "Password of the thing."},
        "one_port": {"type": "int", "default": 80, "description": "Port of the thing."},
    },
    "two": {"two_name": {"type": "str", "required": True, "description": "Name again."}},
    "grouped": {"grouped_name": {"type": "str", "required": True, "description": "Needed in its group only."}},
}
GOOD: dict[str, Any] = {"one_name": "x", "one_password": "p" * 16, "two_name": "{{ one_name }}"}
RULES = [
    {"when": "one_port | int < 1", "because": "one_port is {{ one_port }}: write 1 or more."},
    {"when": "one_name is not match('^[a-z]+$')", "because": "one_name is '{{ one_name }}': write letters."},
]
# Host → what it sets besides (None: leaves out), and the faults of check_inventory and of refuse.
HOSTS: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "good": ({}, [], []),
    "in_group": ({"grouped_name": "g"}, [], []),
    "in_group_without": ({}, ["grouped_name is missing: write it in the inventory (Needed in its group only)."], []),
    "without_name": ({"one_name": None}, ["one_name is missing: write it in the inventory (Name of the thing)."], []),
    "two_faults": ({"one_port": 0, "one_name": "7"}, [], ["one_port is 0: write 1 or more.", "one_name is '7': write letters."]),
    "text_from_the_command_line": ({"one_port": "8080"}, [], []),
    "unknown": ({"one_nmae": "x"}, ["one_nmae is unknown: did you mean one_name?"], []),
    "wrong_type": ({"one_port": "many"}, ["one_port is 'many': write a whole number (int)."], []),
    "undefined": (
        {"one_name": "{{ no_such }}"},
        ["one_name has no value: 'no_such' is undefined: define that, or write another value."],
        [],
    ),
    "placeholder": (
        {"one_name": "a.example.com"},
        ["one_name still holds the placeholder 'a.example.com': write your own value in the inventory."],
        [],
    ),
    "short_secret": (
        {"one_password": "hunter2"},
        ["one_password is a secret of 7 characters: write at least 16, or let `make secrets` write it."],
        [],
    ),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Run both plugins once, for all hosts: task → host → result."""
    folder = tmp_path_factory.mktemp("plugins")
    for role, options in SPECS.items():
        (folder / "roles" / role / "meta").mkdir(parents=True)
        text = yaml.safe_dump({"argument_specs": {"main": {"options": options}}})
        (folder / "roles" / role / "meta" / "argument_specs.yml").write_text(text, encoding="utf-8")
        defaults = {name: option["default"] for name, option in options.items() if "default" in option}
        (folder / "roles" / role / "defaults").mkdir()
        (folder / "roles" / role / "defaults" / "main.yml").write_text(yaml.safe_dump(defaults), encoding="utf-8")
    # A role without specs of its own goes first, as Ansible's own validation would stop the play before the plugins.
    (folder / "roles" / "first" / "tasks").mkdir(parents=True)
    tasks = [
        {"name": "Check without facts", "check_inventory": None, "failed_when": False},
        {"name": "Gather", "ansible.builtin.setup": {"gather_subset": ["!all", "!min", "distribution"]}},
        {"name": "Check", "check_inventory": None, "failed_when": False},
        {"name": "Refuse", "refuse": {"rules": RULES}, "failed_when": False},
    ]
    (folder / "roles" / "first" / "tasks" / "main.yml").write_text(yaml.safe_dump(tasks), encoding="utf-8")
    hosts = {name: {key: value for key, value in {**GOOD, **given}.items() if value is not None} for name, (given, _, _) in HOSTS.items()}
    groups = {"all": {"hosts": hosts}, "grouped": {"hosts": dict.fromkeys(("in_group", "in_group_without"))}}
    (folder / "hosts.yml").write_text(yaml.safe_dump(groups), encoding="utf-8")
    play = [{"name": "Play", "hosts": "all", "gather_facts": False, "connection": "local", "roles": ["first", *SPECS]}]
    (folder / "play.yml").write_text(yaml.safe_dump(play), encoding="utf-8")
    done = subprocess.run(
        [VENV_BIN / "ansible-playbook", "-i", folder / "hosts.yml", folder / "play.yml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={
            **os.environ,
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            "ANSIBLE_ANY_ERRORS_FATAL": "false",
            "ANSIBLE_ROLES_PATH": str(folder / "roles"),
        },
    )
    start = done.stdout.find("{\n")
    assert start >= 0, done.stdout + done.stderr
    parsed, _ = json.JSONDecoder().raw_decode(done.stdout[start:])
    return {task["task"]["name"].split(" : ")[-1]: task["hosts"] for task in parsed["plays"][0]["tasks"]}


@pytest.mark.parametrize("host", HOSTS)
def test_check_inventory_says(host: str, told: dict[str, dict[str, Any]]) -> None:
    result = told["Check"][host]
    assert result.get("faults", []) == HOSTS[host][1]
    assert result["changed"] is False
    assert "hunter2" not in str(result)


def test_check_inventory_waits_for_facts(told: dict[str, dict[str, Any]]) -> None:
    early = told["Check without facts"]
    assert early["undefined"].get("faults", []) == []
    assert early["wrong_type"]["faults"] == HOSTS["wrong_type"][1]


@pytest.mark.parametrize("host", [host for host, (_, faults, _) in HOSTS.items() if not faults])
def test_refuse_says(host: str, told: dict[str, dict[str, Any]]) -> None:
    result = told["Refuse"][host]
    assert result.get("faults", []) == HOSTS[host][2]
    assert result["changed"] is False


def test_message_names_the_host_first(told: dict[str, dict[str, Any]]) -> None:
    assert told["Refuse"]["two_faults"]["msg"] == (
        "Nothing was changed on two_faults. one_port is 0: write 1 or more. one_name is '7': write letters."
    )


def test_missing_value_is_one_fault_however_many_are_made_from_it(told: dict[str, dict[str, Any]]) -> None:
    """two_name is made from one_name, which is missing."""
    assert len(told["Check"]["without_name"]["faults"]) == 1


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ({"type": "int"}, "many", "x is 'many': write a whole number (int)."),
        ({"type": "bool"}, "perhaps", "x is 'perhaps': write true or false (bool)."),
        ({"type": "list", "elements": "str"}, {"a": 1}, "x is {'a': 1}: write a list."),
        ({"type": "dict"}, 7, "x is 7: write a mapping of names to values (dict)."),
        ({"type": "str", "choices": ["a", "b"]}, "c", "x is 'c': write one of a, b."),
        ({"type": "int"}, "7", ""),
        ({"type": "bool"}, "yes", ""),
        ({"type": "dict", "no_log": True}, [1], "x is of the wrong kind: write a mapping of names to values (dict)."),
        ({"type": "str"}, "CHANGE_ME", "x still holds the placeholder 'CHANGE_ME': write your own value in the inventory."),
        ({"type": "list", "elements": "str"}, ["ok", "<your name>"], "x still holds the placeholder '<your name>': write your own"),
        ({"type": "str", "no_log": True}, "", "x is a secret of 0 characters: write at least 16"),
        ({"type": "str"}, "example.community", ""),
    ],
)
def test_wrong_value(kind: dict[str, Any], value: Any, said: str) -> None:
    text = check_inventory._wrong("x", kind, value)
    assert text.startswith(said)
    assert bool(text) == bool(said)


def test_fault_inside_a_list_names_the_part() -> None:
    option = {"type": "list", "elements": "dict", "options": {"replicas": {"type": "int"}}}
    text = check_inventory._wrong("app_services", option, [{"replicas": "many"}])
    assert text.startswith("app_services is wrong: ")
    assert "replicas" in text
    assert "many" in text


@pytest.mark.parametrize("name", ["restore_target", "disaster_recovery_target"])
def test_split_value_is_known_beside_its_input(name: str) -> None:
    """What Ansible splits off a time on the command line is no unknown variable where a role takes it; else it is."""
    specs: dict[str, dict[str, Any]] = {"role": {name: {}}}
    assert list(check_inventory._unknown({name: "2026-11-23", "_raw_params": "10:15:00+00"}, specs)) == []
    assert len(list(check_inventory._unknown({"_raw_params": "10:15:00+00"}, specs))) == 1


def test_unknown_part_of_a_list_is_named() -> None:
    option = {"type": "list", "elements": "dict", "options": {"replicas": {"type": "int"}, "image": {"type": "str"}}}
    text = check_inventory._wrong("app_services", option, [{"relpicas": 2}])
    assert text == "app_services.relpicas is unknown: write one of image, replicas."
