"""The state directory on real file systems: made, locked, and refused with a sentence where it cannot be used."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from algomesh_services.local.errors import (
    PortInUse,
    StateFull,
    StateInUse,
    StateNotADirectory,
    StateNotOurs,
    StateReadOnly,
)
from algomesh_services.local.ports import check_port
from algomesh_services.local.state import FOLDERS, StateDirectory
from tests.conditions import until

pytestmark = pytest.mark.integration

HOLDER = """
import os, sys, time
from algomesh_services.local.state import StateDirectory
state = StateDirectory(sys.argv[1], needed_bytes=0)
state.open()
if len(sys.argv) > 2:  # a child that outlives us for a moment
    os.set_inheritable(state.lock_fd, True)
    if os.fork() == 0:
        time.sleep(float(sys.argv[2]))
        os._exit(0)
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A tiny file system of its own."""
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", folder],
        check=False,
        capture_output=True,
        text=True,
    )
    if made.returncode != 0:
        pytest.skip(f"mounting is not possible here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_new_directory_is_ours_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state"

    with StateDirectory(path) as state:
        modes = {name: stat.S_IMODE((path / name).stat().st_mode) for name in FOLDERS}

        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert modes == dict.fromkeys(FOLDERS, 0o700)
        assert state.secrets == path / "secrets"
        assert list(state.run.iterdir()) == []


def test_it_can_be_opened_again_when_closed(tmp_path: Path) -> None:
    for _ in range(2):
        with StateDirectory(tmp_path / "state"):
            pass


def test_a_second_user_is_told_the_pid_of_the_first(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            with pytest.raises(StateInUse, match=rf"pid {holder.pid}\).*--state") as caught:
                StateDirectory(tmp_path, needed_bytes=0).open()
        finally:
            holder.kill()

    assert caught.value.pid == holder.pid
    assert caught.value.code == "state_in_use"


def test_after_a_kill_the_next_waits_for_what_the_holder_left_running(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path, "0.5"], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
        holder.wait()

        with StateDirectory(tmp_path, needed_bytes=0) as state:
            assert int((state.path / "lock").read_text()) == os.getpid()


@pytest.mark.parametrize("below", ["", "below", "below/that"])
def test_a_file_in_the_way_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StateNotADirectory, match=r"file.* is not a directory; .*--state"):
        StateDirectory(tmp_path / "file" / below).open()


def test_a_file_in_place_of_a_folder_of_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "nats").write_text("")

    with pytest.raises(StateNotADirectory, match=str(tmp_path / "nats")):
        StateDirectory(tmp_path).open()
    (tmp_path / "nats").unlink()
    with StateDirectory(tmp_path):  # the refused attempt has left no lock
        pass


def test_a_full_file_system_is_refused_before_anything_starts(tmpfs: Path) -> None:
    with pytest.raises(StateFull, match=r"has 0 MiB left and the mesh needs 96 MiB"):
        StateDirectory(tmpfs / "state").open()


def test_a_file_system_that_fills_up_is_refused(tmpfs: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        (tmpfs / "rest").write_bytes(bytes(1_000_000))

    with pytest.raises(StateFull, match=r"no space is left .* --state"):
        StateDirectory(tmpfs / "state", needed_bytes=0).open()


def test_a_read_only_file_system_is_refused(tmpfs: Path) -> None:
    with StateDirectory(tmpfs / "state", needed_bytes=0):
        pass
    subprocess.run(["mount", "-o", "remount,ro", tmpfs], check=True)

    for path in (tmpfs / "state", tmpfs / "new"):
        with pytest.raises(StateReadOnly, match=r"read-only file system; .*--state"):
            StateDirectory(path).open()


def test_root_does_not_take_over_the_state_of_another_user(tmp_path: Path, needs_root: None) -> None:
    with StateDirectory(tmp_path / "state"):
        pass
    os.chown(tmp_path / "state" / "lock", 12345, 12345)

    with pytest.raises(StateNotOurs, match="belongs to the user 12345"):
        StateDirectory(tmp_path / "state").open()


def test_a_directory_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("needs an ordinary user: root may write everywhere")
    tmp_path.chmod(0o500)

    with pytest.raises(StateNotOurs, match="may not be written"):
        StateDirectory(tmp_path / "state").open()
    tmp_path.chmod(0o700)


def test_a_secret_is_made_once_and_is_private(tmp_path: Path) -> None:
    with StateDirectory(tmp_path) as state:
        first = state.secret("pepper", lambda: "one")
        second = state.secret("pepper", lambda: "two")

        assert (first, second) == ("one", "one")
        assert stat.S_IMODE((state.secrets / "pepper").stat().st_mode) == 0o600
        assert [path.name for path in state.secrets.iterdir()] == ["pepper"]


def test_everybody_who_asks_at_once_gets_the_same_secret(tmp_path: Path) -> None:
    with StateDirectory(tmp_path) as state, ThreadPoolExecutor(8) as pool:
        for round_ in range(20):
            answers = set(pool.map(lambda n: state.secret(f"s{round_}", lambda: str(n)), range(8)))  # noqa: B023

            assert len(answers) == 1


def test_a_secret_that_others_can_read_is_closed_again(tmp_path: Path) -> None:
    with StateDirectory(tmp_path) as state:
        state.secret("pepper", lambda: "one")
        (state.secrets / "pepper").chmod(0o644)

        state.secret("pepper", lambda: "two")

        assert stat.S_IMODE((state.secrets / "pepper").stat().st_mode) == 0o600


async def test_the_lock_of_a_killed_holder_is_free(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
        await until(lambda: holder.poll() is not None)

    with StateDirectory(tmp_path):
        pass


def test_a_free_port_is_found_and_a_taken_one_is_named() -> None:
    free = check_port("127.0.0.1", 0)
    assert check_port("127.0.0.1", free) == free
    with (
        socket.create_server(("127.0.0.1", free)),
        pytest.raises(PortInUse, match=rf"port {free} on 127.0.0.1 is used .* --port \(0: any\)"),
    ):
        check_port("127.0.0.1", free)
