"""How the ledger learns what versions ask for."""

import asyncio

from algomesh_broker.errors import Unreachable
from algomesh_broker.names import VersionId
from algomesh_services.ledger.shares import Shares
from tests.conditions import until


class Registry:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.is_there = True

    async def share(self, version: VersionId) -> float:
        self.asked.append(str(version))
        if not self.is_there:
            raise Unreachable("the registry is away")
        return 0.5


async def test_a_version_is_asked_for_once() -> None:
    registry = Registry()
    known = Shares(registry.share)

    assert known.of("a/b/1.0.0") is None
    assert known.of("a/b/1.0.0") is None
    await until(lambda: known.of("a/b/1.0.0") == 0.5)

    assert registry.asked == ["a/b/1.0.0"]


async def test_a_registry_that_is_away_is_asked_again_later() -> None:
    registry = Registry()
    registry.is_there = False
    known = Shares(registry.share)
    known.of("a/b/1.0.0")
    await until(lambda: not known._asking)

    assert known.of("a/b/1.0.0") is None
    assert len(registry.asked) == 1

    registry.is_there = True
    known._not_before["a/b/1.0.0"] = asyncio.get_running_loop().time()
    assert known.of("a/b/1.0.0") is None
    await until(lambda: known.of("a/b/1.0.0") == 0.5)


async def test_what_is_no_version_is_not_asked_for() -> None:
    registry = Registry()
    known = Shares(registry.share)

    assert known.of("other/other") is None
    await asyncio.sleep(0)

    assert registry.asked == []


async def test_it_gives_up_what_it_asks_when_it_closes() -> None:
    async def never(_: VersionId) -> float:
        await asyncio.Event().wait()
        return 0.0

    known = Shares(never)
    known.of("a/b/1.0.0")
    await known.close()

    assert not known._asking
