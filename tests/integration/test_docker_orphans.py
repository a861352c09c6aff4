"""How a launcher knows that another one is gone: by the lock that each holds in the state directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from algomesh_services.launcher.docker_orphans import LauncherLock, read_mesh

pytestmark = [pytest.mark.integration, pytest.mark.engine]

HOLD = """
import sys, time
from pathlib import Path
from algomesh_services.launcher.docker_orphans import LauncherLock
with LauncherLock(Path(sys.argv[1]), "bbbb"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_launcher_that_lives_is_not_gone_and_one_that_was_killed_is(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout, LauncherLock(tmp_path, "aaaa") as lock:
        try:
            process.stdout.readline()
            assert not lock.is_gone("bbbb")
        finally:
            process.kill()
            process.wait()

        assert lock.is_gone("bbbb")
        assert not (tmp_path / "launchers" / "bbbb").exists()


def test_it_never_takes_itself_for_gone_but_who_is_unknown_is(tmp_path: Path) -> None:
    with LauncherLock(tmp_path, "aaaa") as lock:
        assert not lock.is_gone("aaaa")
        assert lock.is_gone("never-heard-of")
        assert lock.is_gone("")

    assert os.listdir(tmp_path / "launchers") == []  # noqa: PTH208


def test_the_name_of_a_mesh_stays_with_its_state_directory(tmp_path: Path) -> None:
    first = read_mesh(tmp_path / "one")

    assert read_mesh(tmp_path / "one") == first
    assert read_mesh(tmp_path / "two") != first
    assert LauncherLock(tmp_path / "one", "aaaa").mesh == first
