"""Programs that nobody waits for let others go first: real processes."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from algomesh_services.courtesy import NICENESS, give_way
from algomesh_services.ledger.store import Store

pytestmark = pytest.mark.integration

GIVE_WAY = (
    "import os, pathlib\n"
    "from algomesh_services.courtesy import give_way\n"
    "{before}\n"
    "give_way()\n"
    "group = pathlib.Path('/proc/self/autogroup')\n"
    "print(os.getpriority(os.PRIO_PROCESS, 0), group.read_text() if group.exists() else '')\n"
)


def session_niceness(said: str) -> int | None:
    """What a process's autogroup says; None where there are none."""
    found = re.search(r"nice (-?\d+)", said)
    return int(found[1]) if found else None


def child(before: str = "", *, has_own_session: bool = True) -> tuple[int, int | None]:
    """The niceness of a process that gave way, and that of its session."""
    said = subprocess.run(
        [sys.executable, "-c", GIVE_WAY.format(before=before)],
        start_new_session=has_own_session, stdout=subprocess.PIPE, text=True, check=True,
    ).stdout  # fmt: skip
    niceness, _, group = said.partition(" ")
    return int(niceness), session_niceness(group)


def group_of(pid: int | str) -> int | None:
    try:
        return session_niceness(Path(f"/proc/{pid}/autogroup").read_text())
    except OSError:
        return None


def has_groups() -> bool:
    """Whether a new session gets a group here: whoever asks may stand outside them all, as in some containers."""
    said = subprocess.run(
        ["/bin/cat", "/proc/self/autogroup"], start_new_session=True, stdout=subprocess.PIPE, text=True, check=False
    ).stdout
    return session_niceness(said) is not None


def test_who_gives_way_is_nicer_and_so_is_its_session() -> None:
    assert child() == (NICENESS, NICENESS if has_groups() else None)


def test_a_session_that_others_share_stays_as_it_is() -> None:
    before = group_of("self")

    assert child(has_own_session=False) == (max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)), before)
    assert group_of("self") == before


def test_who_is_nicer_already_stays_so() -> None:
    assert child("os.nice(15)")[0] == 15


def test_a_process_that_is_no_more_is_no_error() -> None:
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()

    give_way(ended.pid)


@pytest_asyncio.fixture
async def store(postgres: str) -> AsyncIterator[Store]:
    opened = await Store.open(postgres, "ledger")
    yield opened
    await opened.close()


async def test_the_ledgers_backends_give_way_and_others_do_not(postgres: str, store: Store) -> None:
    connection = await asyncpg.connect(postgres)
    try:
        own = connection.get_server_pid()
        has_groups = group_of(own) is not None
        pids = await connection.fetch("SELECT pid FROM pg_stat_activity WHERE application_name = 'algomesh-ledger'")

        assert [group_of(row["pid"]) for row in pids] == [NICENESS if has_groups else None]
        assert os.getpriority(os.PRIO_PROCESS, pids[0]["pid"]) == NICENESS
        assert group_of(own) == (0 if has_groups else None)
    finally:
        await connection.close()
