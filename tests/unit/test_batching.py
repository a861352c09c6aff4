"""The option `batch`, and when a batch begins."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import algomesh
from algomesh import Batch, content
from algomesh.errors import BadInput, BadOutput
from algomesh.instance.gathering import Gathering


def batched(function: Callable[..., Any], batch: Any = 8) -> algomesh.Algorithm[..., Any]:
    return algomesh.algorithm("t/batched", version="1.0.0", batch=batch)(function)


def double(values: list[int]) -> list[int]:
    return [2 * value for value in values]


async def halve(values: list[int]) -> list[float]:
    return [value / 2 for value in values]


class Line:
    """A Gathering with a clock of its own, whose batches take `took_s`."""

    def __init__(self, most: int = 32, wait_s: float = 0.004, lanes: int = 1) -> None:
        self.gathering = Gathering(most, wait_s, lanes)
        self.now = 100.0

    def arrive(self, count: int = 1) -> None:
        for _ in range(count):
            self.gathering.arrive(self.now)

    @property
    def due_in(self) -> float | None:
        due = self.gathering.due(self.now)
        return None if due is None else due - self.now

    def begin(self) -> int:
        return self.gathering.begin(self.now)

    def end(self, size: int, took_s: float = 0.01) -> None:
        self.now += took_s
        self.gathering.end(self.now, size, took_s)

    def batch(self, count: int) -> None:
        """A batch of `count`, of which all are there at once."""
        self.arrive(count)
        self.begin()
        self.end(count)


def test_the_option_is_what_the_mesh_is_told() -> None:
    assert (batched(double, Batch(max=16, wait_ms=2)).options.batch_max, batched(double).options.batch_max) == (16, 8)
    assert batched(double, Batch(max=16, wait_ms=2)).options.batch_wait_ms == 2.0
    assert batched(double, None).options.batch_max == 0


@pytest.mark.parametrize("batch", [0, -1, 1.5, True, "8", 100_000])
def test_a_batch_that_is_none_is_refused(batch: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        batched(double, batch)


@pytest.mark.parametrize("wait_ms", [-1, float("nan"), 100_000])
def test_a_wait_that_is_none_is_refused(wait_ms: float) -> None:
    with pytest.raises(ValueError, match="wait_ms"):
        Batch(wait_ms=wait_ms)


def test_a_batch_cannot_call() -> None:
    with pytest.raises(ValueError, match="several callers"):
        algomesh.algorithm("t/batched", version="1.0.0", batch=8, calls=["t/other"])


def test_its_callers_see_the_types_of_the_items() -> None:
    algorithm = batched(double)

    assert (algorithm.signature.takes, algorithm.signature.gives) == (int, int)
    assert algorithm.manifest("m:a").input_schema == b'{"type":"integer"}'
    assert algorithm.signature.read(*content.encode(4)) == 4
    with pytest.raises(BadInput):
        algorithm.signature.read(*content.encode([4]))


def test_it_needs_no_annotations() -> None:
    def reverse(values):  # type: ignore[no-untyped-def]
        return values[::-1]

    assert batched(reverse).signature.read(*content.encode([4])) == [4]


def test_code_that_takes_no_list_is_refused() -> None:
    def single(value: int) -> int:
        return value

    with pytest.raises(TypeError, match="list of inputs"):
        batched(single)


def test_code_that_yields_is_refused() -> None:
    def parts(values: list[int]) -> Iterator[int]:
        yield from values

    async def async_parts(values: list[int]) -> AsyncIterator[int]:
        yield values[0]

    for function in (parts, async_parts):
        with pytest.raises(TypeError):
            batched(function)


def test_called_as_it_is_it_takes_a_list() -> None:
    assert batched(double)([1, 2]) == [2, 4]


def test_run_one_takes_one_and_gives_one() -> None:
    assert batched(double).run_one(4) == 8
    assert asyncio.run(batched(halve).run_one(4)) == 2.0
    assert batched(double, None).run_one([1, 2]) == [2, 4]


@pytest.mark.parametrize("outputs", [[], [1, 2], "a", None, {"a": 1}, 4])
def test_one_output_for_each_input(outputs: Any) -> None:
    with pytest.raises(BadOutput, match="batch of 1"):
        batched(lambda values: outputs).run_one(4)


def test_one_caller_at_a_time_never_waits() -> None:
    line = Line()

    for _ in range(20):
        line.arrive()
        assert line.due_in == 0
        assert line.begin() == 1
        line.end(1)


def test_what_came_while_a_batch_ran_leaves_together_when_it_ends() -> None:
    line = Line()
    line.arrive()
    line.begin()
    line.arrive(5)
    assert line.due_in is None

    line.end(1, took_s=0.0)

    assert line.due_in == 0
    assert line.begin() == 5


def test_a_batch_has_at_most_so_many() -> None:
    line = Line(most=4)
    line.arrive(9)

    assert (line.begin(), line.gathering.waiting) == (4, 5)


def test_after_a_batch_of_several_it_waits_until_as_many_are_there() -> None:
    line = Line()
    line.batch(3)

    line.arrive(2)
    assert line.due_in == pytest.approx(0.004)
    line.now += 0.001
    assert line.due_in == pytest.approx(0.003)
    line.arrive()

    assert line.due_in == 0


def test_two_callers_who_miss_each_other_meet() -> None:
    line = Line()
    line.arrive()
    line.begin()
    line.arrive()
    line.end(1)

    assert line.due_in == pytest.approx(0.004)
    line.arrive()

    assert line.due_in == 0
    assert line.begin() == 2


def test_a_full_batch_waits_for_nobody() -> None:
    line = Line(most=4)
    line.batch(4)
    line.arrive(4)

    assert line.due_in == 0


def test_no_wait_is_longer_than_a_batch_takes() -> None:
    line = Line()
    line.arrive(3)
    line.begin()
    line.end(3, took_s=0.001)

    line.arrive()

    assert line.due_in == pytest.approx(0.001)


def test_when_only_one_caller_is_left_few_calls_wait() -> None:
    line = Line()
    for _ in range(5):
        line.batch(16)

    waits = []
    for _ in range(10):
        line.arrive()
        waits.append(line.due_in)
        line.now += line.due_in or 0.0
        line.begin()
        line.end(1)

    assert sum(wait is not None and wait > 0 for wait in waits) <= 2
    assert waits[3:] == [0] * 7


def test_waits_in_vain_become_rare() -> None:
    """Arrivals come in pairs by chance, and then one by one again: waiting for a second one never pays."""
    line = Line()
    waited = 0

    for _ in range(200):
        line.arrive()
        due_in = line.due_in
        assert due_in is not None
        waited += due_in > 0
        line.now += due_in
        line.begin()
        line.arrive()
        line.end(1)
        line.gathering.leave()

    assert waited < 12


def test_a_lane_that_is_free_takes_the_next_batch_at_once() -> None:
    line = Line(lanes=2)
    line.arrive()
    line.begin()
    line.arrive()

    assert line.due_in == 0
    assert line.begin() == 1
    line.arrive()
    assert line.due_in is None


def test_a_batch_that_raised_says_nothing_about_time() -> None:
    line = Line()
    line.arrive(2)
    line.begin()
    line.gathering.end(line.now, 2, None)

    assert line.gathering.longest_wait_s == 0.0
