"""Iterators as inputs: read as they are asked for, bounded, closed."""

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import algomesh
from algomesh import content, errors
from algomesh.content import Content
from algomesh.inputs import MOST_COLLECTED, comes_in_items, given

EACH = algomesh.stage("a/b").each()
PLAIN = algomesh.stage("a/b")


async def read(pipeline: algomesh.Pipeline, value: Any, most: int = 1_000, timeout_s: float = 5.0) -> list[Any]:
    found: list[Any] = []
    async with given(pipeline, value, timeout_s) as (items, _):
        assert not isinstance(items, Content)
        async for item in items:
            found.append(content.decode(*item))
            if len(found) == most:
                break
    return found


async def whole(value: Any) -> Any:
    async with given(PLAIN, value, 5.0) as (items, _):
        assert isinstance(items, Content)
        return content.decode(*items)


async def numbers(n: int) -> AsyncIterator[int]:
    for number in range(n):
        yield number


@pytest.mark.parametrize("pipeline", [EACH, EACH | "c/d"])
async def test_an_each_reads_lists_and_iterators_one_by_one(pipeline: algomesh.Pipeline) -> None:
    assert await read(pipeline, [1, "a", b"b"]) == [1, "a", b"b"]
    assert await read(pipeline, iter([1, 2])) == [1, 2]
    assert await read(pipeline, numbers(3)) == [0, 1, 2]
    assert await read(pipeline, itertools.count(), most=5) == [0, 1, 2, 3, 4]


async def test_elsewhere_an_iterator_is_a_list() -> None:
    assert await whole(n * n for n in range(4)) == [0, 1, 4, 9]
    assert await whole(numbers(2)) == [0, 1]
    assert not comes_in_items(PLAIN, [1, 2])
    assert not comes_in_items(PLAIN | EACH, [1, 2])


async def test_too_long_an_iterator_is_refused_with_what_to_do() -> None:
    with pytest.raises(errors.BadInput, match="each"):
        await whole(itertools.repeat(1, MOST_COLLECTED + 1))


async def test_a_plain_iterator_blocks_only_its_own_thread() -> None:
    gate, seen = threading.Event(), set[int]()

    def blocked() -> Iterator[int]:
        seen.add(threading.get_ident())
        yield 1
        gate.wait(5)
        seen.add(threading.get_ident())
        yield 2

    reading = asyncio.create_task(read(EACH, blocked()))
    await asyncio.sleep(0.01)
    gate.set()

    assert await reading == [1, 2]
    assert len(seen) == 1
    assert threading.get_ident() not in seen


async def test_a_source_that_gives_nothing_ends_with_the_deadline() -> None:
    gate = threading.Event()

    def stuck() -> Iterator[int]:
        gate.wait(5)
        yield 1

    with pytest.raises(errors.DeadlineExceeded, match="item 0"):
        await read(EACH, stuck(), timeout_s=0.05)
    gate.set()


async def test_a_generator_is_closed_when_nobody_reads_it_any_more() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    assert await read(EACH, endless(), most=3) == [0, 1, 2]

    assert await asyncio.to_thread(closed.wait, 5)


async def test_what_a_source_raises_comes_as_it_is() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await read(EACH, broken())


async def test_an_item_that_cannot_travel_is_named() -> None:
    with pytest.raises(errors.BadInput, match="item 1 ›"):
        await read(EACH, [1, threading.Lock()])


async def test_a_hundred_thousand_items_do_not_hold_up_the_loop() -> None:
    began = time.perf_counter()

    async with given(EACH, list(range(MOST_COLLECTED)), 5.0) as (items, _):
        assert not isinstance(items, Content)
        await anext(items)

    assert time.perf_counter() - began < 0.05
