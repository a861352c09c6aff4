"""Aliases: names for versions that move, for everybody and at once, while whoever names a version keeps it."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from algomesh_broker.connection import Connection
from algomesh_broker.directory import Directory, UnknownVersion
from algomesh_broker.errors import Forbidden
from algomesh_broker.identity import Identity
from algomesh_broker.names import Reference
from algomesh_broker.platform import AliasSet, Done
from tests.conditions import until
from tests.integration.registry_fixtures import Mesh, Refused, ask, publish, running_mesh

pytestmark = pytest.mark.integration

STABLE, CANARY = Reference.parse("text/clean/stable"), Reference.parse("text/clean/canary")


@pytest_asyncio.fixture
async def mesh(tmp_path: Path, postgres: str) -> AsyncIterator[Mesh]:
    """A registry, and text/clean in three versions."""
    async with running_mesh(tmp_path, postgres) as mesh:
        admin = await mesh.admin()
        for version in ("1.0.0", "1.1.0", "2.0.0"):
            await publish(admin, f"text/clean/{version}")
        yield mesh


@pytest_asyncio.fixture
async def admin(mesh: Mesh) -> Connection:
    return await mesh.admin()


@pytest_asyncio.fixture
async def directory(mesh: Mesh) -> AsyncIterator[Directory]:
    async with await Directory.open(await mesh.admin()) as directory:
        yield directory


async def set_alias(connection: Connection, alias: str, *versions: str, algorithm: str = "text/clean") -> None:
    """Versions as the command line has them: `1.1.0=90`."""
    weights = {version.partition("=")[0]: int(version.partition("=")[2] or 1) for version in versions}
    await ask(connection, "alias-set", AliasSet(alias=alias, weights=weights), Done, algorithm=algorithm)


def meant(directory: Directory, reference: Reference = STABLE) -> str:
    try:
        return str(directory.resolve(reference).version.version)
    except UnknownVersion:
        return ""


async def test_an_alias_means_its_version_until_it_is_moved(admin: Connection, directory: Directory) -> None:
    await set_alias(admin, "stable", "1.0.0")
    await until(lambda: meant(directory) == "1.0.0")

    await set_alias(admin, "stable", "1.1.0")

    await until(lambda: meant(directory) == "1.1.0")
    assert directory.is_lasting(STABLE)


async def test_moving_an_alias_moves_nobody_who_named_a_version(admin: Connection, directory: Directory) -> None:
    pinned = [Reference.parse(f"text/clean{end}") for end in ("/1.0.0", "/1.1", "/1", "", "/latest")]
    await set_alias(admin, "stable", "1.0.0")
    await until(lambda: meant(directory) == "1.0.0")
    before = [directory.resolve(reference).version for reference in pinned]

    await set_alias(admin, "stable", "2.0.0")
    await until(lambda: meant(directory) == "2.0.0")

    assert [directory.resolve(reference).version for reference in pinned] == before
    assert [str(version.version) for version in before] == ["1.0.0", "1.1.0", "1.1.0", "2.0.0", "2.0.0"]


async def test_weights_split_the_calls(admin: Connection, directory: Directory) -> None:
    await set_alias(admin, "canary", "1.1.0=90", "2.0.0=10", "1.0.0=0")
    await until(lambda: meant(directory, CANARY))

    assert not directory.is_lasting(CANARY)
    share = Counter(meant(directory, CANARY) for _ in range(10_000))

    assert share.keys() == {"1.1.0", "2.0.0"}
    assert 0.08 < share["2.0.0"] / 10_000 < 0.12


async def test_a_split_that_is_over_is_over_for_everybody(admin: Connection, directory: Directory) -> None:
    await set_alias(admin, "canary", "1.1.0=50", "2.0.0=50")
    await until(lambda: meant(directory, CANARY))

    await set_alias(admin, "canary", "2.0.0")
    await until(lambda: [entry.aliases for entry in directory.entries()] == [{"canary": {"2.0.0": 1}}])

    assert {meant(directory, CANARY) for _ in range(200)} == {"2.0.0"}


async def test_a_move_reaches_every_process_within_milliseconds(mesh: Mesh, admin: Connection) -> None:
    directories = [await Directory.open(await mesh.admin()) for _ in range(5)]
    took_s = []
    for turn in range(20):
        version = ("1.0.0", "1.1.0")[turn % 2]
        began = time.perf_counter()
        await set_alias(admin, "stable", version)
        async with asyncio.timeout(5):
            while {meant(directory) for directory in directories} != {version}:
                await asyncio.sleep(0)
        took_s.append(time.perf_counter() - began)

    took_s.sort()
    print(f"5 processes follow an alias in {took_s[10] * 1e3:.1f} ms (median), {took_s[-1] * 1e3:.1f} ms (slowest)")
    for directory in directories:
        await directory.close()


async def test_a_removed_alias_is_refused_and_the_versions_are_named(admin: Connection, directory: Directory) -> None:
    await set_alias(admin, "stable", "1.0.0")
    await set_alias(admin, "canary", "2.0.0")
    await until(lambda: meant(directory) and meant(directory, CANARY))

    await set_alias(admin, "stable")
    await until(lambda: not meant(directory))

    with pytest.raises(UnknownVersion, match=r"no version 'stable'; it has 2\.0\.0, .* and the aliases canary"):
        directory.resolve(STABLE)


async def test_aliases_outlive_a_publish_and_the_registry(mesh: Mesh, admin: Connection, directory: Directory) -> None:
    await set_alias(admin, "stable", "1.0.0")

    await publish(admin, "text/clean/3.0.0")
    await until(lambda: meant(directory, Reference.parse("text/clean")) == "3.0.0")

    assert meant(directory) == "1.0.0"
    async with mesh.registry():
        assert meant(directory) == "1.0.0"


@pytest.mark.parametrize(
    ("alias", "weights", "code"),
    [
        ("latest", {"1.0.0": 1}, "bad_reference"),
        ("1", {"1.0.0": 1}, "bad_reference"),
        ("St able", {"1.0.0": 1}, "bad_reference"),
        ("stable", {"9.0.0": 1}, "unknown_version"),
        ("stable", {"1.0": 1}, "unknown_version"),
        ("stable", {"1.0.0": 0}, "bad_reference"),
        ("stable", {"1.0.0": -1}, "bad_reference"),
        ("stable", {"1.0.0": 10**9}, "bad_reference"),
        ("stable", {}, "unknown_version"),
    ],
)
async def test_what_no_alias_can_mean_is_refused(
    admin: Connection, alias: str, weights: dict[str, int], code: str
) -> None:
    with pytest.raises(Refused) as refused:
        await ask(admin, "alias-set", AliasSet(alias=alias, weights=weights), Done, algorithm="text/clean")

    assert refused.value.code == code


async def test_an_algorithm_that_is_not_there_has_no_aliases(admin: Connection) -> None:
    with pytest.raises(Refused) as refused:
        await set_alias(admin, "stable", "1.0.0", algorithm="text/nothing")

    assert refused.value.code == "unknown_algorithm"


async def test_an_algorithm_has_few_aliases(admin: Connection) -> None:
    for number in range(64):
        await set_alias(admin, f"a{number}", "1.0.0")

    with pytest.raises(Refused, match="64 aliases already"):
        await set_alias(admin, "one-more", "1.0.0")
    await set_alias(admin, "a5", "2.0.0")


async def test_only_who_may_publish_may_move_an_alias(mesh: Mesh) -> None:
    author = await mesh.connect(Identity.of_key(await mesh.key("publish:text/*")))
    caller = await mesh.connect(Identity.of_key(await mesh.key("call:*", "publish:me/*")))

    await set_alias(author, "stable", "1.0.0")
    with pytest.raises(Forbidden):
        await set_alias(caller, "stable", "2.0.0")
