"""The two scripts by which .ci/run fails on what pytest itself lets pass."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

CI = Path(__file__).resolve().parents[2] / ".ci"
LIST = "# comment\n\nneeds a CUDA .evice -- no GPU in CI\n"
REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="test_ran"/>
<testcase classname="tests.a" name="test_gpu"><skipped type="pytest.skip" message="needs a CUDA device"/></testcase>
{more}
</testsuite></testsuites>"""
UNLISTED = '<testcase name="t"><skipped type="pytest.skip" message="no nats-server"/></testcase>'
WHOLE_MODULE = """<testcase classname="" name="tests.b"><skipped type="pytest.skip" message="collection skipped"
>('/somewhere/test_b.py', 1, 'Skipped: could not import b')</skipped></testcase>"""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CI / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def judge_skips(folder: Path, *, more: str = "", report: str = REPORT, allowed: str = LIST) -> tuple[int, str]:
    (folder / "reports").mkdir()
    (folder / "reports" / "unit.xml").write_text(report.format(more=more))
    (folder / "skips.txt").write_text(allowed)
    done = run("skipped.py", str(folder / "skips.txt"), str(folder / "reports"))
    return done.returncode, done.stdout + done.stderr


def test_a_listed_reason_passes_and_is_shown(tmp_path: Path) -> None:
    status, said = judge_skips(tmp_path)

    assert status == 0
    assert "1 skipped: needs a CUDA device" in said
    assert "no GPU in CI" in said


@pytest.mark.parametrize(("more", "reason"), [(UNLISTED, "no nats-server"), (WHOLE_MODULE, "could not import b")])
def test_an_unlisted_reason_fails(tmp_path: Path, more: str, reason: str) -> None:
    status, said = judge_skips(tmp_path, more=more)

    assert status == 1
    assert f"1 skipped: {reason}\n    NOT on the list" in said


def test_a_run_without_tests_fails(tmp_path: Path) -> None:
    status, _ = judge_skips(tmp_path, report="<testsuites/>")

    assert status == 1


def test_a_list_entry_must_say_why(tmp_path: Path) -> None:
    status, said = judge_skips(tmp_path, allowed="needs a GPU\n")

    assert status == 1
    assert "skips.txt:1: write PATTERN -- WHY" in said


def test_a_command_that_leaves_nothing_keeps_its_exit_status() -> None:
    assert run("leftovers.py", "sh", "-c", "(sleep 0.2 &) ; exit 7").returncode == 7


def test_a_detached_process_is_named_and_killed() -> None:
    done = run("leftovers.py", "sh", "-c", "setsid sleep 61.5 >/dev/null 2>&1 & echo $!")

    pid = int(done.stdout.splitlines()[0])
    assert done.returncode == 1
    assert f"{pid}: sleep 61.5" in done.stdout
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_command_killed_by_a_signal_fails_as_a_shell_would_say() -> None:
    assert run("leftovers.py", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM
