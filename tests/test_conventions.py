"""The repository keeps its conventions, and each convention can be broken: a small good tree with one fault in it is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests import conventions
from tests.conventions import RULES, Rule

ROOT = Path(__file__).resolve().parent.parent
GOOD = ROOT / "tests" / "fixtures" / "conventions" / "good"

SPECS = "roles/sample/meta/argument_specs.yml"
CONFIGURE = "roles/sample/tasks/configure.yml"
PROMISES = "files/promises/test_sample.py"
DEMO = "inventories/demo/group_vars/all/sample.yml"

# Rule, file, what is replaced in it (the whole file is removed where empty), by what, and what the rule then says.
FAULTS = [
    ("role_files", "roles/sample/tasks/preflight.yml", "", "", "tasks/preflight.yml is missing"),
    ("role_files", "roles/sample/README.md", "", "", "README.md is missing"),
    ("role_files", "roles/sample/library/x.py", "", "new", "library has no place"),
    ("main_imports", "roles/sample/tasks/main.yml", "import_tasks: configure.yml", "debug: {msg: x}", "is no import_tasks"),
    ("main_imports", "roles/sample/tasks/main.yml", "[sample:configure]", "[sample]", "lacks the tag sample:configure"),
    ("main_imports", "roles/sample/tasks/main.yml", "configure.yml", "preflight.yml", "imports preflight"),
    ("main_imports", "roles/sample/tasks/configure.yml", "", "", "imports configure.yml, which is missing"),
    ("preflight_refuses", "roles/sample/tasks/preflight.yml", "refuse:", "assert:", "has no `refuse` task"),
    (
        "preflight_refuses",
        "roles/sample/tasks/preflight.yml",
        "rules: []",
        "rules: []\n- {name: Write, copy: {dest: /x}}",
        "changes the host",
    ),
    ("defaults_match_specs", "roles/sample/defaults/main.yml", "seconds: 5", "seconds: 6", "is 6 in the defaults and 5 in the specs"),
    ("defaults_match_specs", "roles/sample/defaults/main.yml", "5", "5\nsample_y: 1", "sample_y has a default and is not in the specs"),
    ("defaults_match_specs", "roles/sample/defaults/main.yml", "5", "5\nsample_domain: x", "sample_domain is required and has a default"),
    ("defaults_match_specs", "roles/sample/defaults/main.yml", "sample_timeout_seconds: 5", "{}", "in the specs of sample only"),
    ("defaults_match_specs", SPECS, "        default: 5\n", "", "has a default that the specs of sample do not tell"),
    (
        "defaults_match_specs",
        SPECS,
        "type: str\n        required: true\n      sample_p",
        "type: str\n      sample_p",
        "is neither required",
    ),
    ("spec_descriptions", SPECS, "Name of the host.", "name of the host.", "is no sentence"),
    ("spec_descriptions", SPECS, "Name of the host.", "Name of the host", "is no sentence"),
    ("spec_descriptions", SPECS, "Name of the host.", "Name of the host..", "is no sentence"),
    (
        "spec_descriptions",
        SPECS,
        "description: Name of the host.\n        type: str",
        "description: Name of it.",
        "sample_domain has no type",
    ),
    ("spec_descriptions", SPECS, "type: str", "type: list", "does not say of what"),
    ("spec_descriptions", SPECS, "sample_timeout_seconds", "sample_timeout", "is a time: put its unit"),
    ("spec_descriptions", SPECS, "sample_timeout_seconds", "sample_memory", "is a size: put its unit"),
    ("spec_descriptions", SPECS, "wait in seconds", "wait", "does not name the unit"),
    ("spec_descriptions", SPECS, "    description: Runs the service x.\n", "", "lack short_description or description"),
    ("secrets_are_required", SPECS, "        no_log: true\n", "", "sample_password looks like a secret"),
    (
        "secrets_are_required",
        SPECS,
        "no_log: true\n        required: true",
        "no_log: true\n        default: changeme",
        "would work and be wrong",
    ),
    ("secrets_are_required", SPECS, "no_log: true\n        required: true", 'no_log: true\n        default: ""', "may be empty"),
    ("inventory_keys", DEMO, "sample_domain", "sample_domian", "did you mean sample_domain"),
    ("inventory_keys", DEMO, "sample_domain", "sample_domian", "does not set sample_domain"),
    ("inventory_keys", DEMO, "app.example.com", "x\npreflight_memory_mb: 1", "belongs in preflight.yml"),
    ("inventory_keys", "inventories/demo/group_vars/all/versions.yml", "", "sample_domain: x", "is in sample.yml too"),
    ("inventory_keys", "inventories/production/hosts.yml", "", "", "hosts.yml is missing"),
    ("scenarios", "molecule/sample/converge.yml", "", "", "converge.yml is missing"),
    ("scenarios", PROMISES, "", "", "test_sample.py is missing"),
    ("scenarios", "files/promises/test_gone.py", "", "x = 1", "is of no role"),
    ("promise_sentences", PROMISES, '    """The service answers."""\n', "", "has no sentence"),
    ("promise_sentences", PROMISES, "The service answers.", "answers", "has no sentence"),
    ("promise_sentences", PROMISES, "(host: Host)", "()", "asks no host"),
    ("playbooks_are_contents", "playbooks/site.yml", "  roles:", "  tasks: [{ansible.builtin.debug: {msg: hello}}]\n  roles:", "has tasks"),
    ("playbooks_are_contents", "playbooks/site.yml", "{role: sample, tags: [sample]}", "sample", "lacks its tag"),
    ("playbooks_are_contents", "playbooks/site.yml", "  gather_facts: false\n", "", "gathers facts"),
    ("site_has_every_role", "playbooks/site.yml", "    - {role: preflight, tags: [preflight]}\n", "", "does not begin with preflight"),
    ("site_has_every_role", "playbooks/site.yml", "    - {role: sample, tags: [sample]}\n", "", "lacks the role sample"),
    ("site_has_every_role", "playbooks/site.yml", "role: sample", "role: gone", "names the role gone"),
    ("variable_prefixes", "roles/sample/defaults/main.yml", "sample_timeout", "timeout", "does not begin with sample_"),
    ("variable_prefixes", "roles/sample/vars/main.yml", "__sample_packages", "sample_packages", "does not begin with __sample_"),
    ("own_variables_only", "roles/sample/templates/x.conf.j2", "sample_domain", "preflight_memory_mb", "of another role"),
    ("own_variables_only", CONFIGURE, "__sample_packages", "__preflight_packages", "of another role"),
    ("templates_say_who_wrote_them", "roles/sample/templates/x.conf.j2", "ansible_managed", "x", "does not say"),
    ("templates_say_who_wrote_them", "roles/sample/templates/y.conf.j2", "", "# {{ ansible_managed }}", "is used by no task"),
    ("templates_say_who_wrote_them", "roles/sample/templates/y.conf", "", "# {{ ansible_managed }}", "does not end in .j2"),
    ("secret_files_have_no_diff", CONFIGURE, "  diff: false\n", "", "would show sample_password"),
    ("handlers_are_notified", CONFIGURE, "[Restart x, Reload x]", "[Restart x, Reload x, Restart y]", "'Restart y', which is no handler"),
    ("handlers_are_notified", CONFIGURE, "[Restart x, Reload x]", "[Restart x]", "nobody notifies 'Reload x'"),
    ("handlers_are_notified", "roles/sample/handlers/main.yml", "  when: __sample_restarted is undefined\n", "", "runs even after"),
    ("units_may_be_missing", "roles/sample/handlers/main.yml", "systemd_unit:", "ansible.builtin.systemd_service:", "call systemd_unit"),
    ("one_package_task", CONFIGURE, "---\n", "---\n- name: Install more\n  ansible.builtin.apt:\n    name: y\n", "packages in 2 tasks"),
    ("scripts_are_safe", "roles/sample/files/restore", "set -euo pipefail", "set -e", "lacks `set -euo pipefail`"),
    ("scripts_are_safe", "roles/sample/files/restore", "--help", "-h", "does not answer --help"),
    ("controls_are_carried_and_promised", CONFIGURE, "  tags: [HF-X-01]\n", "", "HF-X-01 is a tag of no task of the role sample"),
    ("controls_are_carried_and_promised", CONFIGURE, "[HF-X-01]", "[HF-X-01, HF-X-02]", "has the tag HF-X-02, which"),
    ("controls_are_carried_and_promised", PROMISES, '@pytest.mark.control("HF-X-01")\n', "", "HF-X-01 marks 0 promises"),
    (
        "controls_are_carried_and_promised",
        PROMISES,
        'control("HF-X-01")',
        'control("HF-X-03")',
        "A promise is marked HF-X-03, which is not",
    ),
    (
        "controls_are_carried_and_promised",
        "roles/sample/templates/x.conf.j2",
        "ansible_managed",
        "x HF-X-04",
        "names HF-X-04, which is not",
    ),
    ("nothing_unfinished", CONFIGURE, "---\n", "---\n# TODO: finish\n", "is unfinished"),
    ("nothing_unfinished", PROMISES, "def test", "import pytest\n@pytest.mark.skip\ndef test", "leaves a test or a linter out"),
    ("nothing_unfinished", PROMISES, "is_listening", "is_listening  # noqa", "leaves a test or a linter out"),
    ("nothing_of_this_machine", CONFIGURE, "/etc/x.conf", "/home/someone/x.conf", "holds a path of one machine"),
]


@pytest.mark.parametrize("check", RULES, ids=lambda check: check.__name__)
def test_repository_keeps(check: Rule) -> None:
    faults = list(check(ROOT))
    if faults:
        pytest.fail("\n".join([str(check.__doc__), *faults]), pytrace=False)


@pytest.mark.parametrize("check", RULES, ids=lambda check: check.__name__)
def test_good_tree_passes(check: Rule, tmp_path: Path) -> None:
    shutil.copytree(GOOD, tmp_path / "tree")
    assert list(check(tmp_path / "tree")) == []


@pytest.mark.parametrize(("name", "path", "old", "new", "said"), FAULTS, ids=[f"{name}-{said}" for name, _, _, _, said in FAULTS])
def test_fault_is_refused(name: str, path: str, old: str, new: str, said: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(GOOD, tree)
    file = tree / path
    if old:
        text = file.read_text(encoding="utf-8")
        assert old in text, "the fixture has changed"
        file.write_text(text.replace(old, new), encoding="utf-8")
    elif new:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(new, encoding="utf-8")
    else:
        file.unlink()
    faults = list(getattr(conventions, name)(tree))
    assert [fault for fault in faults if re.search(re.escape(said), fault)], f"{name} said {faults}"


def test_every_rule_is_seen_to_fail() -> None:
    assert {check.__name__ for check in RULES} == {name for name, *_ in FAULTS}


def test_own_mirror_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(GOOD, tree)
    (tree / CONFIGURE).write_text("# deb https://mirror.internal.test/debian trixie main\n", encoding="utf-8")
    monkeypatch.setattr(conventions, "_mirrors", lambda: {"mirror.internal.test"})
    assert list(conventions.nothing_of_this_machine(tree)) == [f"{CONFIGURE}:1 names this machine's mirror mirror.internal.test."]
