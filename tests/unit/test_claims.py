"""Claims without a server: who shares memory, what a claim may name, what the subjects and the mapping say."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from algomesh_broker import authorization, credentials, permissions, subjects
from algomesh_broker.claims import _recut
from algomesh_broker.claims_hosts import FORGET_AFTER_S, LauncherHosts
from algomesh_broker.claims_stream import CHUNK_BYTES, _check
from algomesh_broker.errors import ClaimGone
from algomesh_broker.messages import Claim, HostBeat
from algomesh_broker.names import VersionId

ID = "k~abc1234567." + "0123456789abcdef" * 2
HERE, THERE = "here.1-1.0", "there.1-1.0"


def beat(launcher: str, host: str, *, alive: bool = True) -> HostBeat:
    return HostBeat(launcher=launcher, alive=alive, host=host)


@pytest.fixture
def hosts() -> LauncherHosts:
    return LauncherHosts(lambda host: host == HERE)


def test_memory_is_shared_when_every_launcher_is_here(hosts: LauncherHosts) -> None:
    assert hosts.shared(0.0) == ""

    hosts.on_beat(beat("one", HERE), 0.0)
    hosts.on_beat(beat("two", HERE), 0.0)

    assert hosts.shared(1.0) == HERE


@pytest.mark.parametrize("other", [THERE, ""])
def test_one_launcher_elsewhere_and_memory_is_not_shared_until_it_says_goodbye(
    hosts: LauncherHosts, other: str
) -> None:
    hosts.on_beat(beat("one", HERE), 0.0)
    hosts.on_beat(beat("two", other), 0.0)
    assert hosts.shared(1.0) == ""

    hosts.on_beat(beat("two", other, alive=False), 1.0)

    assert hosts.shared(1.0) == HERE


def test_a_launcher_that_is_silent_is_forgotten(hosts: LauncherHosts) -> None:
    hosts.on_beat(beat("one", HERE), 0.0)

    assert hosts.shared(FORGET_AFTER_S + 0.1) == ""


def test_launchers_that_are_all_elsewhere_share_nothing_with_us(hosts: LauncherHosts) -> None:
    hosts.on_beat(beat("one", THERE), 0.0)

    assert hosts.shared(0.0) == ""


@pytest.mark.parametrize(
    "claim",
    [
        Claim(id="k~abc.*", size_bytes=1, chunks=1),
        Claim(id="*." + "0" * 32, size_bytes=1, chunks=1),
        Claim(id=f"{ID}.0", size_bytes=1, chunks=1),
        Claim(id=f"{ID}\n", size_bytes=1, chunks=1),
        Claim(id=f"k~abc 1.{'0' * 32}", size_bytes=1, chunks=1),
        Claim(id=ID.upper(), size_bytes=1, chunks=1),
        Claim(id="", size_bytes=1, chunks=1),
        Claim(id=ID, size_bytes=-1, chunks=0),
        Claim(id=ID, size_bytes=1, chunks=0),
        Claim(id=ID, size_bytes=1, chunks=10_000_000),
        Claim(id=ID, size_bytes=2**30 + 1, chunks=2049),
    ],
)
def test_a_claim_that_nobody_can_have_made_is_refused(claim: Claim) -> None:
    with pytest.raises(ClaimGone):
        _check(claim)


@pytest.mark.parametrize("size_bytes", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2**30])
def test_a_claim_of_any_size_up_to_a_gibibyte_is_one(size_bytes: int) -> None:
    _check(Claim(id=ID, size_bytes=size_bytes, chunks=-(-size_bytes // CHUNK_BYTES)))


@pytest.mark.parametrize(
    "sizes", [[], [0], [1], [CHUNK_BYTES], [3, CHUNK_BYTES, 5], [CHUNK_BYTES * 2 + 7], [100_000] * 20]
)
async def test_pieces_of_any_size_become_chunks_of_one(sizes: list[int]) -> None:
    data = bytes(range(256)) * (sum(sizes) // 256 + 1)
    whole = data[: sum(sizes)]

    async def pieces() -> AsyncIterator[memoryview]:
        at = 0
        for size in sizes:
            yield memoryview(whole[at : at + size])
            at += size

    cut = [bytes(piece) async for piece in _recut(pieces())]

    assert b"".join(cut) == whole
    assert all(len(piece) == CHUNK_BYTES for piece in cut[:-1])
    assert all(0 < len(piece) <= CHUNK_BYTES for piece in cut[-1:])


def test_everybody_writes_claims_in_his_own_name_and_may_ask_for_one() -> None:
    version = VersionId.parse("text/clean/1.0.0")
    for allowed, caller in (
        (permissions.of_key("abc1234567", []), "k~abc1234567"),
        (permissions.of_instance(version, "host-1", []), "text~clean"),
    ):
        about = [subject for subject in allowed.publish if "claim" in subject]
        assert about == [f"claim.*.{caller}.*.*.chunk", subjects.READ_CLAIM]
        assert not [subject for subject in allowed.subscribe if "claim" in subject]


def test_only_the_launcher_keeps_the_stream_of_claims_and_cannot_delete_it() -> None:
    for program in ("registry", "launcher", "ledger"):
        allowed = [subject for subject in permissions.in_store(program).publish if ".claims" in subject]
        assert bool(allowed) == (program == "launcher")
        assert not [subject for subject in allowed if "DELETE" in subject or "CONSUMER" in subject]


def test_the_server_marks_what_is_written_and_what_is_asked_for_alike(tmp_path: Path) -> None:
    credentials.ensure_secrets(tmp_path)
    text = authorization.authorization_config(tmp_path)
    accounts = json.loads(text.removeprefix("accounts: ").partition("\nsystem_account")[0])

    mappings = accounts["MESH"]["mappings"]

    assert set(mappings) >= {subjects.ALL_CLAIMS, subjects.READ_CLAIM}
    for subject in (subjects.ALL_CLAIMS, subjects.READ_CLAIM):
        made = mappings[subject]
        before, _, after = made.partition("claim.{{partition(2147483647,3)}}.")
        assert subject.startswith(f"{before}claim.")
        assert re.findall(r"\d+", after) == ["2", "3", "4"]
