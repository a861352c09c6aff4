"""A program shows that it is ready by a file, for as long as it is."""

import asyncio
from pathlib import Path

from algomesh_services.readiness import show_ready
from tests.conditions import until


async def test_the_file_is_there_while_the_program_is_ready_and_gone_when_it_ends(tmp_path: Path) -> None:
    file = tmp_path / "ready"

    showing = asyncio.create_task(show_ready(lambda: True, {"ALGOMESH_READY_FILE": str(file)}))
    await until(file.exists)
    showing.cancel()
    await asyncio.gather(showing, return_exceptions=True)

    assert not file.exists()


async def test_what_an_earlier_life_left_goes_while_the_program_is_not_ready(tmp_path: Path) -> None:
    file = tmp_path / "ready"
    file.touch()

    showing = asyncio.create_task(show_ready(lambda: False, {"ALGOMESH_READY_FILE": str(file)}))
    await until(lambda: not file.exists())
    showing.cancel()
    await asyncio.gather(showing, return_exceptions=True)


async def test_without_the_variable_nothing_is_shown() -> None:
    await show_ready(lambda: True, {})


async def test_a_program_goes_on_where_the_file_cannot_be_written(tmp_path: Path) -> None:
    place = tmp_path / "nowhere" / "ready"

    showing = asyncio.create_task(show_ready(lambda: True, {"ALGOMESH_READY_FILE": str(place)}))
    await asyncio.sleep(0)

    assert not showing.done()
    showing.cancel()
    await asyncio.gather(showing, return_exceptions=True)
