"""The conventions of this repository as functions: each takes the root of a tree and yields one sentence for each breach.

`test_conventions.py` holds the repository to them, and each of them to a small tree that breaks it.
"""

from __future__ import annotations

import ast
import difflib
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tools import controls

Rule = Callable[[Path], Iterator[str]]
RULES: list[Rule] = []

ROLE_FILES = ("README.md", "defaults/main.yml", "meta/argument_specs.yml", "tasks/main.yml", "tasks/preflight.yml")
ROLE_FOLDERS = {"defaults", "files", "handlers", "meta", "tasks", "templates", "vars"}
# Formats that know no comment (users.acl is Valkey's, release.json ours), and the page that a person prints.
WITHOUT_COMMENTS = (".json.j2", ".acl.j2", ".crt.j2", ".key.j2", ".html.j2", ".txt.j2")
# Ansible's own, and what an inventory keeps for itself to wire inputs together.
FOREIGN = re.compile(r"^ansible_|^__")
DURATION = re.compile(r"(timeout|interval|age|period|delay|ttl|duration|retention|grace|lifetime|wait)(_|$)")
SIZE = re.compile(r"(memory|disk|buffers?|size|cache|body|space)(_|$)")
TIME_UNITS = ("ms", "milliseconds", "seconds", "minutes", "hours", "days")
SIZE_UNITS = ("bytes", "kb", "mb", "gb")
# Programs of ours write these into the demo's inventory: an input's last word, and .yml.
GENERATED = ("images.yml", "admins.yml", "bucket.yml")
SECRET = re.compile(r"(password|secret|secret_key|token|passphrase)s?$")
CONTROL = re.compile(r"\bHF-[A-Z]+-[0-9]{2}\b")
# Skips the promise of a control that the inventory waives, and says why.
WAIVES = "files/promises/conftest.py"
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b")
WAIVED = re.compile(r"#\s*noqa(?!:? ?[A-Za-z\[])|#\s*type:\s*ignore(?!\[)|pytest\.(mark\.)?(skip|xfail)")
OTHER_MACHINE = re.compile(r"(?<![\w.])/(?:work/(?:main|shared)|home/[a-z]\w*|Users/\w+)\b|/tmp/h/")
# These name what they forbid.
NAME_IT = ("tests/conventions.py", "tests/test_conventions.py", "CONTRIBUTING.md")
TEXT = {"", ".py", ".yml", ".yaml", ".md", ".toml", ".cfg", ".j2", ".sh", ".in", ".txt", ".js", ".css", ".html", ".conf", ".mod", ".json"}


def rule(function: Rule) -> Rule:
    """Add a rule to the list that the tests go through."""
    RULES.append(function)
    return function


def load(path: Path) -> Any:
    """Return what a YAML file holds; nothing where there is none. Tags such as !vault and !unsafe are read as their text."""
    if not path.exists():
        return None
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  # a subclass of the safe loader


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_multi_constructor("!", lambda loader, suffix, node: loader.construct_scalar(node))


def roles(root: Path) -> list[str]:
    """Return the names of all roles."""
    return sorted(path.name for path in (root / "roles").iterdir() if path.is_dir() and any(path.rglob("*.*")))


def options(root: Path, role: str) -> dict[str, dict[str, Any]]:
    """Return the inputs of a role."""
    specs = load(root / "roles" / role / "meta" / "argument_specs.yml") or {}
    return dict(specs.get("argument_specs", {}).get("main", {}).get("options") or {})


def nested(found: dict[str, dict[str, Any]], parent: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Return all options and the options inside them, by their dotted names."""
    for name, option in found.items():
        yield f"{parent}{name}", option
        yield from nested(option.get("options") or {}, f"{parent}{name}.")


def tasks(root: Path, role: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return all tasks and handlers of a role, those in blocks too, each with its file."""
    for folder in ("tasks", "handlers"):
        for path in sorted((root / "roles" / role / folder).glob("*.yml")):
            for task in _flat(load(path) or []):
                yield str(path.relative_to(root)), task


def _flat(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for task in found:
        yield task
        for part in ("block", "rescue", "always"):
            yield from _flat(task.get(part) or [])


def action(task: dict[str, Any], *names: str) -> dict[str, Any] | None:
    """Return the arguments of a task that calls one of these modules."""
    for key, value in task.items():
        if key.rsplit(".", maxsplit=1)[-1] in names:
            return value if isinstance(value, dict) else {"_raw_params": value}
    return None


def tracked(root: Path) -> list[Path]:
    """Return the text files of the tree: what git tracks, or all where it is no checkout."""
    listed = subprocess.run(["git", "-C", root, "ls-files", "-z"], capture_output=True, text=True, check=False).stdout
    found = [root / name for name in listed.split("\0") if name] or [path for path in root.rglob("*") if path.is_file()]
    return [path for path in found if path.suffix in TEXT and path.is_file() and not path.is_relative_to(root / "tests" / "fixtures")]


@rule
def role_files(root: Path) -> Iterator[str]:
    """Every role has the same shape."""
    for role in roles(root):
        folder = root / "roles" / role
        for name in ROLE_FILES:
            if not (folder / name).is_file():
                yield f"roles/{role}/{name} is missing."
        for path in sorted(folder.iterdir()):
            if path.name != "README.md" and path.name not in ROLE_FOLDERS:
                yield f"roles/{role}/{path.name} has no place in a role."


@rule
def main_imports(root: Path) -> Iterator[str]:
    """A role's main.yml only imports its sections, each with its tag; preflight runs by itself."""
    for role in roles(root):
        path = root / "roles" / role / "tasks" / "main.yml"
        if role == "preflight":
            continue
        for task in load(path) or []:
            imported = (action(task, "import_tasks") or {}).get("_raw_params") or (action(task, "import_tasks") or {}).get("file")
            where = f"roles/{role}/tasks/main.yml: '{task.get('name')}'"
            if not imported:
                yield f"{where} is no import_tasks."
                continue
            section = Path(imported).stem
            if section == "preflight":
                yield f"{where} imports preflight, which the role preflight runs before any host is touched."
            elif f"{role}:{section}" not in (task.get("tags") or []):
                yield f"{where} lacks the tag {role}:{section}."
            if not (path.parent / imported).exists():
                yield f"{where} imports {imported}, which is missing."


@rule
def preflight_refuses(root: Path) -> Iterator[str]:
    """A role's preflight.yml changes nothing: it refuses, asserts, or probes."""
    for role in roles(root):
        found = load(root / "roles" / role / "tasks" / "preflight.yml") or []
        if not any(action(task, "refuse") is not None for task in _flat(found)):
            yield f"roles/{role}/tasks/preflight.yml has no `refuse` task."
        for task in _flat(found):
            if writes := [name for name in ("apt", "template", "copy", "file", "systemd_unit", "lineinfile", "user") if action(task, name)]:
                yield f"roles/{role}/tasks/preflight.yml: '{task.get('name')}' changes the host with {writes[0]}."


@rule
def defaults_match_specs(root: Path) -> Iterator[str]:
    """Defaults and specs say the same, in both directions."""
    for role in roles(root):
        defaults = load(root / "roles" / role / "defaults" / "main.yml") or {}
        found = options(root, role)
        for name, value in defaults.items():
            if name not in found:
                yield f"{name} has a default and is not in the specs of {role}."
            elif found[name].get("required"):
                yield f"{name} is required and has a default."
            elif "default" not in found[name]:
                yield f"{name} has a default that the specs of {role} do not tell."
            elif found[name]["default"] != value:
                yield f"{name} is {value!r} in the defaults and {found[name]['default']!r} in the specs of {role}."
        for name, option in found.items():
            if "default" in option and name not in defaults:
                yield f"{name} has a default in the specs of {role} only."
            # What has required parts can only be whole or absent.
            whole = any(part.get("required") for part in (option.get("options") or {}).values())
            if not option.get("required") and "default" not in option and not option.get("no_log") and not whole:
                yield f"{name} is neither required nor has it a default."


@rule
def spec_descriptions(root: Path) -> Iterator[str]:
    """Every input has a type and a sentence; a number of seconds or bytes has its unit in the name and the sentence."""
    for role in roles(root):
        specs = (load(root / "roles" / role / "meta" / "argument_specs.yml") or {}).get("argument_specs", {}).get("main", {})
        if not specs.get("short_description") or not specs.get("description"):
            yield f"The specs of {role} lack short_description or description."
        for name, option in nested(options(root, role)):
            told = option.get("description")
            for sentence in [told] if isinstance(told, str) else told or [""]:
                text = str(sentence).strip()
                if not re.fullmatch(r"[A-ZÄÖÜ0-9/`(].*[^\s.,:;!]\.", text, re.DOTALL) or "  " in text or ".." in text.removesuffix("."):
                    yield f"{name}: '{text[:50]}' is no sentence with a capital and one period."
            if "type" not in option:
                yield f"{name} has no type."
            if option.get("type") == "list" and "elements" not in option:
                yield f"{name} is a list and does not say of what."
            yield from _units(name, option)


def _units(name: str, option: dict[str, Any]) -> Iterator[str]:
    last = name.rsplit(".", maxsplit=1)[-1]
    unit = last.rsplit("_", maxsplit=1)[-1]
    if option.get("type") not in ("int", "float"):
        return
    if DURATION.search(last) and unit not in (*TIME_UNITS, *SIZE_UNITS):
        yield f"{name} is a time: put its unit in its name (_{', _'.join(TIME_UNITS)})."
    elif SIZE.search(last) and not last.endswith("pool_size") and unit not in (*TIME_UNITS, *SIZE_UNITS):
        yield f"{name} is a size: put its unit in its name (_{', _'.join(SIZE_UNITS)})."
    if unit in (*TIME_UNITS, *SIZE_UNITS) and not re.search(rf"\b{unit}\b", str(option.get("description")), re.IGNORECASE):
        yield f"{name}: the description does not name the unit ({unit})."


@rule
def secrets_are_required(root: Path) -> Iterator[str]:
    """A secret is hidden, has no default, and is required or absent."""
    for role in roles(root):
        defaults = load(root / "roles" / role / "defaults" / "main.yml") or {}
        for name, option in options(root, role).items():
            if SECRET.search(name) and option.get("type") not in ("bool", "int", "path") and not option.get("no_log"):
                yield f"{name} looks like a secret and has no `no_log: true` in the specs of {role}."
            if option.get("no_log") and (option.get("default") or defaults.get(name)):
                yield f"{name} is a secret with a default that would work and be wrong."
            if option.get("no_log") and option.get("type") == "str" and not option.get("required") and "default" in option:
                yield f"{name} is a secret that may be empty: make it required, or leave the default out."


@rule
def inventory_keys(root: Path) -> Iterator[str]:
    """Every key of an inventory is an input of a role, in the file of that role, once; and every required input is there."""
    owners = {name: role for role in roles(root) for name in options(root, role)}
    for inventory in sorted(path.name for path in (root / "inventories").iterdir() if path.is_dir()):
        seen: dict[str, str] = {}
        for path in sorted((root / "inventories" / inventory / "group_vars" / "all").glob("*.yml")):
            where = path.relative_to(root)
            if path.name in ("vault.yml", *GENERATED):
                continue  # programs of ours write these, and git ignores them
            for name in load(path) or {}:
                if FOREIGN.match(name):
                    continue
                if name not in owners:
                    close = difflib.get_close_matches(name, owners, n=1, cutoff=0.75)
                    yield f"{where}: {name} is no input of any role{f'; did you mean {close[0]}' if close else ''}."
                elif path.stem in roles(root) and owners[name] != path.stem:
                    yield f"{where}: {name} belongs in {owners[name]}.yml."
                if name in seen:
                    yield f"{where}: {name} is in {seen[name]} too."
                seen[name] = path.name
        yield from _missing(root, inventory, set(seen))


def _missing(root: Path, inventory: str, given: set[str]) -> Iterator[str]:
    hosts = load(root / "inventories" / inventory / "hosts.yml")
    if hosts is None:
        yield f"inventories/{inventory}/hosts.yml is missing."
        hosts = {}
    for role in roles(root):
        # A role with a group of its name somewhere runs on that group's hosts only.
        grouped = any(role in (load(path) or {}) for path in (root / "inventories").glob("*/hosts.yml"))
        if grouped and role not in hosts:
            continue
        for name, option in options(root, role).items():
            if option.get("required") and not option.get("no_log") and name not in given and not _generated(root, name):
                yield f"inventories/{inventory} does not set {name}, which {role} requires."


def _generated(root: Path, name: str) -> bool:
    """Say whether a file that git ignores (the demo's images, its admin) may hold the input."""
    ignored = root / ".gitignore"
    file = f"{name.rsplit('_', maxsplit=1)[-1]}.yml"
    return ignored.exists() and file in GENERATED and file in ignored.read_text(encoding="utf-8")


@rule
def scenarios(root: Path) -> Iterator[str]:
    """Every role has a Molecule scenario and a file of promises."""
    for role in roles(root):
        for name in ("molecule.yml", "converge.yml"):
            if role != "preflight" and not (root / "molecule" / role / name).exists():
                yield f"molecule/{role}/{name} is missing."
        if role != "preflight" and not (root / "files" / "promises" / f"test_{role}.py").exists():
            yield f"files/promises/test_{role}.py is missing."
    for path in sorted((root / "files" / "promises").glob("test_*.py")):
        if path.stem.removeprefix("test_") not in roles(root):
            yield f"{path.relative_to(root)} is of no role."


@rule
def promise_sentences(root: Path) -> Iterator[str]:
    """Every promise is a function with a sentence, and asks the host."""
    for path in sorted((root / "files" / "promises").glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            where = f"{path.relative_to(root)}: {node.name}"
            sentence = (ast.get_docstring(node) or "").split("\n\n")[0]
            if not re.fullmatch(r"([A-Z0-9/`]|systemd).*\w.*\.", sentence, re.DOTALL):
                yield f"{where} has no sentence as its docstring."
            if not node.args.args:
                yield f"{where} asks no host: it takes neither `host` nor a fixture that does."


@rule
def playbooks_are_contents(root: Path) -> Iterator[str]:
    """A playbook is a table of contents: roles, imports and tags."""
    for path in [root / "site.yml", *sorted((root / "playbooks").glob("*.yml"))]:
        for play in load(path) or []:
            for key in ("tasks", "pre_tasks", "post_tasks", "handlers"):
                if any(not action(task, "import_role") for task in play.get(key) or []):
                    yield f"{path.relative_to(root)}: '{play.get('name')}' has {key}; a playbook holds roles, imports and tags only."
            for entry in play.get("roles") or []:
                name = entry if isinstance(entry, str) else entry.get("role", "")
                if isinstance(entry, str) or name not in (entry.get("tags") or []):
                    yield f"{path.relative_to(root)}: the role {name} lacks its tag {name}."
            if play.get("roles") and play.get("gather_facts") is not False:
                yield f"{path.relative_to(root)}: '{play.get('name')}' gathers facts; the role preflight does."


@rule
def site_has_every_role(root: Path) -> Iterator[str]:
    """playbooks/site.yml runs every role, preflight first, but for those that only another playbook is for."""
    books = {path.stem: load(path) or [] for path in sorted((root / "playbooks").glob("*.yml"))}
    listed = {
        name: [entry.get("role", "") if isinstance(entry, dict) else entry for play in plays for entry in play.get("roles") or []]
        for name, plays in books.items()
    }
    named = listed.get("site", [])
    if named[:1] != ["preflight"]:
        yield "playbooks/site.yml does not begin with preflight."
    for role in sorted(set(roles(root)) - {role for found in listed.values() for role in found}):
        yield f"playbooks/site.yml lacks the role {role}."
    for role in sorted(set(named) - set(roles(root))):
        yield f"playbooks/site.yml names the role {role}, which is missing."


@rule
def variable_prefixes(root: Path) -> Iterator[str]:
    """Inputs begin with the role's name, internals with two underscores before it."""
    for role in roles(root):
        for name in [*(load(root / "roles" / role / "defaults" / "main.yml") or {}), *options(root, role)]:
            if not name.startswith(f"{role}_"):
                yield f"{name} is an input of {role} and does not begin with {role}_."
        for name in load(root / "roles" / role / "vars" / "main.yml") or {}:
            if not name.startswith(f"__{role}_"):
                yield f"{name} is an internal of {role} and does not begin with __{role}_."


@rule
def own_variables_only(root: Path) -> Iterator[str]:
    """No role names another role's variable: the inventory wires them."""
    names = roles(root)
    everything = {name: role for role in names for name in options(root, role)}
    for role in names:
        others = {name: owner for name, owner in everything.items() if owner != role}
        for folder in ("defaults", "handlers", "meta", "tasks", "templates", "vars"):
            for path in sorted((root / "roles" / role / folder).rglob("*")):
                if not path.is_file():
                    continue
                for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                    code = "" if line.lstrip().startswith("#") else line
                    words = re.findall(r"\b[a-z_]\w+\b", code)
                    own = [word for word in words if word in others or _internal(names, word) not in (role, "")]
                    if own and not (folder == "meta" and "description" in code):
                        yield f"{path.relative_to(root)}:{number} names {own[0]} of another role: give {role} an input of its own."


def _internal(names: list[str], word: str) -> str:
    """Return the role whose internal a variable is, the one with the longest name; nothing where it is none's."""
    return max((name for name in names if word.startswith(f"__{name}_")), key=len, default="")


@rule
def templates_say_who_wrote_them(root: Path) -> Iterator[str]:
    """A template is named like its target plus .j2, says that Ansible manages the file, and is used."""
    for role in roles(root):
        used = "\n".join(
            path.read_text(encoding="utf-8")
            for folder in ("tasks", "templates", "vars", "handlers")
            for path in (root / "roles" / role / folder).rglob("*")
            if path.is_file()
        )
        for path in sorted((root / "roles" / role / "templates").rglob("*")):
            if not path.is_file():
                continue
            where = path.relative_to(root)
            head = "\n".join(path.read_text(encoding="utf-8").splitlines()[:3])
            if path.suffix != ".j2":
                yield f"{where} does not end in .j2."
            elif "ansible_managed" not in head and not path.name.endswith(WITHOUT_COMMENTS):
                yield f"{where} does not say {{{{ ansible_managed }}}} in a comment of its first lines."
            if path.name not in used:
                yield f"{where} is used by no task."


@rule
def secret_files_have_no_diff(root: Path) -> Iterator[str]:
    """A file that holds a secret is written with `diff: false` or `no_log`."""
    for role in roles(root):
        hidden = [name for name, option in options(root, role).items() if option.get("no_log")]
        for where, task in tasks(root, role):
            given = action(task, "template", "copy")
            if given is None or task.get("diff") is False or task.get("no_log"):
                continue
            source = root / "roles" / role / "templates" / str(given.get("src"))
            text = (source.read_text(encoding="utf-8") if source.is_file() else "") + str(given.get("content", ""))
            # What a template fills in or loops over; a name in a comment or the length of a list shows nothing.
            parts = " ".join(re.findall(r"\{\{.*?\}\}|\{%.*?%\}", text, re.DOTALL))
            if shown := [name for name in hidden if re.search(rf"\b{name}\b", parts)]:
                yield f"{where}: '{task.get('name')}' would show {shown[0]} with --diff: add `diff: false`."


@rule
def handlers_are_notified(root: Path) -> Iterator[str]:
    """Every notified handler exists, every handler is notified, and a reload is left out after a restart."""
    for role in roles(root):
        handlers = load(root / "roles" / role / "handlers" / "main.yml") or []
        names = {handler["name"] for handler in handlers}
        heard = {topic for handler in handlers for topic in _list(handler.get("listen"))}
        notified = {name for _, task in tasks(root, role) for name in _list(task.get("notify"))}
        for name in sorted(notified - names - heard):
            yield f"roles/{role} notifies '{name}', which is no handler of it."
        for handler in handlers:
            if not ({handler["name"], *_list(handler.get("listen"))} & notified):
                yield f"roles/{role}/handlers/main.yml: nobody notifies '{handler['name']}'."
            service = handler["name"].removeprefix("Reload ")
            both = handler["name"].startswith("Reload ") and f"Restart {service}" in names
            restart: dict[str, Any] = next((other for other in handlers if other["name"] == f"Restart {service}"), {})
            if both and "when" not in handler and "when" not in restart:
                yield f"roles/{role}/handlers/main.yml: 'Reload {service}' runs even after 'Restart {service}'."


def _list(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


@rule
def units_may_be_missing(root: Path) -> Iterator[str]:
    """A role keeps its units with our own action, which lets a check pass over those that only a run would bring."""
    for role in roles(root):
        for where, task in tasks(root, role):
            if action(task, "service", "systemd", "systemd_service"):
                yield f"{where}: '{task.get('name')}' fails in a check where the unit is not there yet: call systemd_unit instead."


@rule
def one_package_task(root: Path) -> Iterator[str]:
    """A role installs its packages in one task."""
    for role in roles(root):
        found = [
            task["name"]
            for _, task in tasks(root, role)
            if (given := action(task, "apt", "package")) and ("name" in given or "pkg" in given) and given.get("state") != "absent"
        ]
        if len(found) > 1:
            yield f"roles/{role} installs packages in {len(found)} tasks ({', '.join(found)}): make it one with a list."


@rule
def scripts_are_safe(root: Path) -> Iterator[str]:
    """A shell script of a role stops at the first error and explains itself."""
    for role in roles(root):
        for folder in ("files", "templates"):
            for path in sorted((root / "roles" / role / folder).rglob("*")):
                text = path.read_bytes()[:100_000].decode("utf-8", "replace") if path.is_file() else ""
                if not re.match(r"#!.*\b(ba|da)?sh\b", text):
                    continue
                if "set -euo pipefail" not in text:
                    yield f"{path.relative_to(root)} lacks `set -euo pipefail`."
                if "--help" not in text:
                    yield f"{path.relative_to(root)} does not answer --help."


@rule
def controls_are_carried_and_promised(root: Path) -> Iterator[str]:
    """A hardening control has one ID, which is a tag of its role's tasks and marks one promise; and the reverse."""
    known = controls.registry(root)
    tagged = {(role, str(tag)) for role in roles(root) for _, task in tasks(root, role) for tag in _list(task.get("tags"))}
    marked = [name for name, _, _ in controls.promised(root)]
    for control in known.values():
        if (control.role, control.id) not in tagged:
            yield f"{control.id} is a tag of no task of the role {control.role}."
        if marked.count(control.id) != 1:
            yield f"{control.id} marks {marked.count(control.id)} promises: it is pytest.mark.control of exactly one."
    for role, tag in sorted(tagged):
        if CONTROL.fullmatch(tag) and (tag not in known or known[tag].role != role):
            yield f"roles/{role} has the tag {tag}, which {controls.REGISTRY} does not give it."
    for name in sorted(set(marked) - set(known)):
        yield f"A promise is marked {name}, which is not in {controls.REGISTRY}."
    for where, line in _lines(root):
        for name in CONTROL.findall(line):
            if known and name not in known and not where.startswith("tests/"):
                yield f"{where} names {name}, which is not in {controls.REGISTRY}."


@rule
def nothing_unfinished(root: Path) -> Iterator[str]:
    """No tracked file holds a note of unfinished work, a test that is left out, or a waiver without a rule's name."""
    for where, line in _lines(root):
        if UNFINISHED.search(line):
            yield f"{where} is unfinished: {line.strip()[:60]}"
        elif where.split(":")[0].endswith(".py") and not where.startswith(WAIVES) and WAIVED.search(line):
            yield f"{where} leaves a test or a linter out: {line.strip()[:60]}"


@rule
def nothing_of_this_machine(root: Path) -> Iterator[str]:
    """No tracked file names a machine's own paths or the mirror that it happens to use."""
    mirrors = _mirrors()
    for where, line in _lines(root):
        if OTHER_MACHINE.search(line):
            yield f"{where} holds a path of one machine: {line.strip()[:60]}"
        for mirror in mirrors:
            if mirror in line:
                yield f"{where} names this machine's mirror {mirror}."


def _mirrors() -> set[str]:
    """Return the hosts that this machine's own pip and apt fetch from."""
    files = [Path("/etc/pip.conf"), Path.home() / ".config/pip/pip.conf", Path.home() / ".pip/pip.conf", Path.home() / ".npmrc"]
    files += [*Path("/etc/apt").glob("sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files if path.is_file())
    return set(re.findall(r"https?://(?:[^\s/@]*@)?([\w.-]+\.\w+)", text))


def _lines(root: Path) -> Iterator[tuple[str, str]]:
    for path in tracked(root):
        if str(path.relative_to(root)) in NAME_IT:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            yield f"{path.relative_to(root)}:{number}", line
