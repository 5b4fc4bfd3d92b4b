"""The controller's tools: commands that fail say so in a sentence, and generated files are what their sources say."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tools import lint, page, readme, shell, suite, venv
from tools.shell import Failure, run

ROOT = Path(__file__).resolve().parent.parent
GOOD = ROOT / "tests" / "fixtures" / "conventions" / "good"


def test_run_returns_output() -> None:
    assert run(["printf", "a\nb"]).stdout == "a\nb"


def test_run_passes_stdin_and_environment() -> None:
    done = run(["sh", "-c", 'cat; printf "$HOLDFAST_X"'], stdin="in ", env={"HOLDFAST_X": "out"})
    assert done.stdout == "in out"


def test_run_gives_no_terminal() -> None:
    assert run(["cat"], timeout_seconds=5).stdout == ""


def test_failed_command_is_named_with_its_last_lines() -> None:
    with pytest.raises(Failure, match=r"`sh -c .*` failed with exit code 3") as caught:
        run(["sh", "-c", "seq 100; exit 3"])
    assert str(caught.value).endswith("\n100")
    assert "\n85\n" not in str(caught.value)


def test_failed_command_without_check_returns() -> None:
    assert run(["false"], check=False).returncode == 1


def test_missing_program_is_named() -> None:
    with pytest.raises(Failure, match=r"^The program holdfast-no-such-program is not installed\.$"):
        run(["holdfast-no-such-program"])


def test_timeout_is_named() -> None:
    with pytest.raises(Failure, match=r"^`sleep 5` had not ended after 0 s\.$"):
        run(["sleep", "5"], timeout_seconds=0.1)


def test_fail_ends_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        shell.fail("Nothing works.")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "\nholdfast: Nothing works.\n"


def test_step_says_its_time(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with shell.step("Do it"):
        now += 2.34
    assert "Do it …" in (told := capsys.readouterr().err)
    assert "Do it: done in 2.3 s" in told


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository whose pages have their markers and are up to date."""
    shutil.copytree(GOOD, tmp_path / "tree")
    (tmp_path / "tree" / "docs").mkdir()
    page = f"# Hardening\n\n{readme.CONTROLS_BEGIN}\n{readme.CONTROLS_END}\n"
    (tmp_path / "tree" / "docs" / "hardening.md").write_text(page, encoding="utf-8")
    (tmp_path / "tree" / "README.md").write_text(f"# Top\n\n{readme.BEGIN}\n{readme.END}\n\nEnd.\n", encoding="utf-8")
    assert readme.main([], tmp_path / "tree") == 0
    return tmp_path / "tree"


def test_readme_tells_inputs_promises_and_tags(tree: Path) -> None:
    text = (tree / "roles/sample/README.md").read_text(encoding="utf-8")
    assert "| `sample_domain` | str | **required** | Name of the host. |" in text
    assert "| `sample_password` | str | **required** | Password of the service. Secret. |" in text
    assert "| `sample_timeout_seconds` | int | `5` | Longest wait in seconds. |" in text
    assert "- The service answers. (`test_answers`)" in text
    assert "`sample`, `sample:configure`." in text


def test_table_is_between_the_markers(tree: Path) -> None:
    text = (tree / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# Top\n")
    assert text.endswith(f"{readme.END}\n\nEnd.\n")
    assert "| The service answers. | [sample](roles/sample/README.md) | [`test_answers`](files/promises/test_sample.py) |" in text


def test_fresh_readme_passes_the_check(tree: Path) -> None:
    assert readme.main(["--check"], tree) == 0


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("roles/sample/meta/argument_specs.yml", "Longest wait", "Shortest wait"),
        ("files/promises/test_sample.py", "The service answers.", "The service answers at once."),
        ("roles/sample/tasks/main.yml", "sample:configure", "sample:service"),
    ],
)
def test_check_names_the_stale_file(tree: Path, path: str, old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tree / path
    file.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    before = (tree / "roles/sample/README.md").read_text(encoding="utf-8")
    assert readme.main(["--check"], tree) == 1
    assert "roles/sample/README.md is stale: run `make readme` and commit it." in capsys.readouterr().err
    assert (tree / "roles/sample/README.md").read_text(encoding="utf-8") == before


@pytest.mark.parametrize(("page", "marker"), [("README.md", readme.BEGIN), ("docs/hardening.md", readme.CONTROLS_BEGIN)])
def test_missing_markers_are_named(tree: Path, page: str, marker: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / page).write_text("# Top\n", encoding="utf-8")
    assert readme.main(["--check"], tree) == 1
    assert marker in capsys.readouterr().err


@pytest.mark.parametrize("page", ["README.md", "docs/hardening.md"])
def test_missing_page_is_named(tree: Path, page: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / page).unlink()
    assert readme.main([], tree) == 1
    assert f"{page} is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("inventory", "content"),
    [
        ("demo/group_vars/all/sample.yml", "hardening_waivers: {HF-X-01: This network is small.}\n"),
        ("production/host_vars/one.yml", "hardening_waivers: {HF-X-01: This network is small.}\n"),
        ("production/hosts.yml", "all: {hosts: {one: {hardening_waivers: {HF-X-01: This network is small.}}}}\n"),
    ],
)
def test_waiver_is_in_the_table(tree: Path, inventory: str, content: str) -> None:
    (tree / "inventories" / inventory).parent.mkdir(exist_ok=True)
    (tree / "inventories" / inventory).write_text(content, encoding="utf-8")
    assert readme.main(["--check"], tree) == 1
    assert readme.main([], tree) == 0
    rows = [line for line in (tree / "docs/hardening.md").read_text(encoding="utf-8").splitlines() if line.startswith("| HF-X-01 ")]
    assert len(rows) == 1
    assert f"{Path(inventory).parts[0]}: This network is small." in rows[0]


def test_waivers_that_only_a_run_knows_are_refused(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "inventories/demo/hosts.yml").write_text("all: {vars: {hardening_waivers: '{{ x }}'}}\n", encoding="utf-8")
    assert readme.main(["--check"], tree) == 1
    assert "hardening_waivers in inventories/demo/hosts.yml is no dictionary" in capsys.readouterr().err


def test_bars_and_markup_survive_the_table() -> None:
    assert list(readme._rows({"x_y": {"type": "str", "default": "a|b", "description": "Either C(a|b) or I(none)."}})) == [
        '| `x_y` | str | `"a\\|b"` | Either `a\\|b` or *none*. |'
    ]


def test_nested_options_have_dotted_names() -> None:
    option = {"type": "list", "elements": "dict", "options": {"name": {"type": "str", "required": True, "description": "Its name."}}}
    assert [row.split("|")[1].strip() for row in readme._rows({"app_services": option})] == ["`app_services`", "`app_services[].name`"]


def test_shell_scripts_are_found() -> None:
    assert ROOT / ".ci/run" in lint.shell_scripts()
    assert ROOT / "tools/vault-password" not in lint.shell_scripts()


def test_failed_check_returns_what_it_printed() -> None:
    faults, _ = lint.perform(lint.Check("x", [["python", "-c", "print('bad'); raise SystemExit(1)"], ["python", "-c", "print('good')"]]))
    assert faults == "bad"


def test_missing_linter_is_named() -> None:
    with pytest.raises(Failure, match=r"no-such-linter is missing in \.venv: run `make venv`"):
        lint.perform(lint.Check("x", [["no-such-linter"]]))


def test_a_log_says_why_it_ended() -> None:
    """The summary of a run names the tests and tasks that failed, though Ansible's recap comes after them."""
    log = '"FAILED files/promises/test_valkey.py::test_answers - assert 1 == 2",\nfatal: [a]: FAILED! => {}\nok: [a]\nRECAP\n'
    assert suite.reasons(log) == ['"FAILED files/promises/test_valkey.py::test_answers - assert 1 == 2",', "fatal: [a]: FAILED! => {}"]
    assert suite.reasons("ok\n") == []


def test_every_scenario_is_run() -> None:
    """`make test` has each scenario once."""
    assert sorted(suite.SCENARIOS) == sorted(path.parent.name for path in (shell.ROOT / "molecule").glob("*/molecule.yml"))


@pytest.mark.parametrize(
    ("told", "versions", "taken"),
    [
        ({}, {"/usr/bin/python3": "3 11", "python3": "3 12"}, "/usr/bin/python3"),
        ({"PYTHON": "python3.13"}, {"/usr/bin/python3": "3 11", "python3.13": "3 13"}, "python3.13"),
        ({"PYTHON": "python3.9"}, {"/usr/bin/python3": "3 11", "python3.9": "3 9"}, "/usr/bin/python3"),
        ({}, {"/usr/bin/python3": "3 14", "python3": "3 14", "python3.12": "3 12"}, "python3.12"),
    ],
)
def test_python_of_the_environment(monkeypatch: pytest.MonkeyPatch, told: dict[str, str], versions: dict[str, str], taken: str) -> None:
    """The environment is made with the Python that make's PYTHON names, else the distribution's, else one that Ansible runs on."""
    monkeypatch.delenv("PYTHON", raising=False)
    for name, value in {"PATH": f"{shell.VENV_BIN}:/bin", **told}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(shutil, "which", lambda name, path: name if name in versions and path == "/bin" else None)
    monkeypatch.setattr(venv, "run", lambda words, **_: subprocess.CompletedProcess(words, 0, versions[words[0]]))
    assert venv._interpreter() == taken


def test_no_python_for_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(venv, "_supported", lambda _: False)
    with pytest.raises(Failure, match=r"Install Python 3\.11 to 3\.13"):
        venv._interpreter()


def test_commands_of_a_page(tmp_path: Path) -> None:
    """A section's commands come one a line, joined where a line goes on, and no other section's."""
    text = "## One\n\n1. Do:\n\n   ```sh\n   a b \\\n       c\n   d\n   ```\n\n```yaml\nno: command\n```\n\n## Two\n\n```sh\ne\n```\n"
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    assert page.commands(tmp_path / "page.md", "One") == ["a b c", "d"]
    assert page.commands(tmp_path / "page.md", "Two") == ["e"]


def test_commands_in_the_sentences_of_a_page(tmp_path: Path) -> None:
    """What a sentence tells to type is found, over a line's end too; names in backticks and blocks are left out."""
    text = "## One\n\nTry `holdfast one` or\n`systemctl start\n  two`, not `a_name`.\n\n```sh\nholdfast three\n```\n\nOr `holdfast one`.\n"
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    assert page.mentioned(tmp_path / "page.md", "One") == ["holdfast one", "systemctl start two"]


def test_every_command_for_the_night_is_run() -> None:
    """Whatever docs/recovery.md tells a person to type is read from it, by its section, in a scenario's test."""
    recovery = shell.ROOT / "docs" / "recovery.md"
    tests = "\n".join(path.read_text(encoding="utf-8") for path in shell.ROOT.glob("molecule/*/tests/*.py"))
    for section in page.sections(recovery):
        typed = page.commands(recovery, section)
        assert not typed or f'"{section}"' in tests
        told = [each for each in page.mentioned(recovery, section) if not any(line.startswith(each) for line in typed)]
        assert not told or f'mentioned(PAGE, "{section}")' in tests
