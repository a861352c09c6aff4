"""How programs wait for their servers, and how they stop."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from structlog.testing import capture_logs

from algomesh_broker.errors import Forbidden, Unreachable
from algomesh_services.lifecycle import Life, retried
from tests.conditions import until


class Away(Exception):
    """A server is not there."""


def failing(*errors: Exception) -> Callable[[], Awaitable[str]]:
    """What raises these, one at each attempt, and then works."""
    left = list(errors)

    async def attempt() -> str:
        if left:
            raise left.pop(0)
        return "there"

    return attempt


def life(on_ready: Callable[[], None] = lambda: None) -> Life:
    return Life("tried", asyncio.Event(), on_ready)


async def test_what_is_away_is_tried_until_it_is_there_and_said_once_while_it_is_the_same() -> None:
    said: list[str] = []
    attempt = failing(Away("a"), Away("a"), Away("b"), Away("a"))

    found = await retried(attempt, Away, said.append, first_s=0, last_s=0)

    assert (found, said) == ("there", ["a", "b", "a"])


async def test_a_program_says_what_it_waits_for() -> None:
    with capture_logs() as logs:
        assert await life().until_there("nats", failing(Unreachable("no server"))) == "there"

    assert logs == [{"event": "waiting_for_server", "log_level": "warning", "server": "nats", "error": "no server"}]


async def test_what_is_wrong_otherwise_is_raised() -> None:
    with pytest.raises(Forbidden):
        await life().until_there("nats", failing(Forbidden("publish", "a")))
    with pytest.raises(Unreachable):
        await life().until_there("postgres", failing(Unreachable("no server")), Away)


async def test_whoever_works_stops_by_itself() -> None:
    done: list[str] = []
    mine = life(lambda: done.append("ready"))

    async def work() -> None:
        mine.begin()
        await mine.stopping.wait()
        await asyncio.sleep(0)
        done.append("stopped")

    living = asyncio.create_task(mine.live(work(), grace_s=60))
    await until(lambda: done == ["ready"])
    mine.stopping.set()
    await living

    assert done == ["ready", "stopped"]


async def test_whoever_still_waits_for_a_server_is_cancelled_at_once() -> None:
    mine = life()

    async def work() -> None:
        await asyncio.Event().wait()

    mine.stopping.set()

    await mine.live(work(), grace_s=3600)


async def test_whoever_does_not_stop_within_its_grace_is_cancelled() -> None:
    mine = life()

    async def work() -> None:
        mine.begin()
        await asyncio.Event().wait()

    mine.stopping.set()

    await mine.live(work(), grace_s=0.01)


async def test_a_life_that_is_cancelled_ends_its_work() -> None:
    mine = life()
    ended: list[bool] = []

    async def work() -> None:
        mine.begin()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    living = asyncio.create_task(mine.live(work(), grace_s=3600))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    living.cancel()
    with pytest.raises(asyncio.CancelledError):
        await living

    assert ended == [True]


@pytest.mark.parametrize("is_stopping", [False, True])
async def test_an_error_of_the_work_is_raised_while_it_stops_too(is_stopping: bool) -> None:
    mine = life()

    async def work() -> None:
        mine.begin()
        if is_stopping:
            await mine.stopping.wait()
        raise Away("broken")

    if is_stopping:
        asyncio.get_running_loop().call_soon(mine.stopping.set)

    with pytest.raises(Away):
        await mine.live(work(), grace_s=60)
