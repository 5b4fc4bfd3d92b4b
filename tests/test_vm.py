"""What `make test-vm` makes of the reports that it reads: nothing that is left out counts as held."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import lynis, vm_test
from tools.shell import Failure

LYNIS = """\
lynis_version=3.1.4
hardening_index=88
tests_executed=KRNL-5820|SSH-7408|
warning[]=PKGS-7392|Found one or more vulnerable packages.|-|-|
suggestion[]=SSH-7408|Consider hardening SSH configuration|Port (set 22 to )|-|
"""
JUNIT = """\
<testsuites><testsuite>
<testcase classname="a" name="test_one" time="1"><properties><property name="rows" value="7"/></properties></testcase>
<testcase classname="a" name="test_many[x]" time="1"/>
<testcase classname="a" name="test_waived" time="1"><skipped message="HF-NET-04 is waived: the network is full of them"/></testcase>
<testcase classname="a" name="test_skipped" time="1"><skipped message="a container has its machine's kernel"/></testcase>
<testcase classname="a" name="test_failed" time="1"><failure message="no"/></testcase>
<testcase classname="a" name="test_broken" time="1"><error message="no"/></testcase>
</testsuite></testsuites>
"""


def test_report_of_lynis() -> None:
    found = lynis.parse(LYNIS)
    assert (found.version, found.index, found.tests) == ("3.1.4", 88, 2)
    assert found.warnings == [lynis.Finding("PKGS-7392", "Found one or more vulnerable packages.")]
    assert found.suggestions == [lynis.Finding("SSH-7408", "Consider hardening SSH configuration (Port (set 22 to ))")]


def test_scan_without_an_end_is_no_scan() -> None:
    with pytest.raises(Failure, match="no hardening index"):
        lynis.parse("lynis_version=3.1.4\n")


def test_finding_needs_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    found = lynis.parse(LYNIS)
    monkeypatch.setattr(lynis, "ANSWERS", {"SSH-7408": "Another port is found in seconds."})
    assert [each.test for each in lynis.unanswered(found)] == ["PKGS-7392"]
    assert "| SSH-7408 | suggestion | Consider hardening SSH configuration (Port (set 22 to )) | Another port is" in lynis.page(found)


def test_promises_that_do_not_count(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(JUNIT)
    found = vm_test.outcome(report)
    assert found.passed == ["test_one", "test_many[x]"]
    assert found.figures == {"rows": "7"}
    wrong = vm_test.faults(found, {"test_one", "test_many", "test_waived", "test_skipped", "test_failed", "test_broken", "test_forgotten"})
    assert wrong == [
        "the promise test_failed does not hold",
        "the promise test_broken does not hold",
        "the promise test_skipped was left out: a container has its machine's kernel",
        "the promise test_forgotten was not asked for",
    ]
