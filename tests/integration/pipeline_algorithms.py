"""Algorithms for the tests of pipelines in a whole mesh."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import algomesh
from algomesh import algorithm


@algorithm("pipe/clean", version="1.0.0")
def clean(text: str) -> str:
    return " ".join(text.lower().split())


@algorithm("pipe/words", version="1.0.0")
def words(text: str) -> list[str]:
    return text.split()


@algorithm("pipe/upper", version="1.0.0")
def upper(text: str) -> str:
    return text.upper()


@algorithm("pipe/merge", version="1.0.0")
def merge(parts: list[str]) -> str:
    return "+".join(parts)


@algorithm("pipe/echo", version="1.0.0")
def echo(value: Any) -> Any:
    return value


@algorithm("pipe/halves", version="1.0.0", timeout=60, calls=["pipe/halves"])
def halves(numbers: list[int]) -> int:
    """A sum by two calls of itself, at once: the splitter of the whitepaper, on numbers."""
    if len(numbers) <= 1:
        return sum(numbers)
    middle = len(numbers) // 2
    again = algomesh.current().client.algo(algomesh.stage("pipe/halves").each())
    return sum(again.pipe([numbers[:middle], numbers[middle:]]).result)


@algorithm("pipe/endless", version="1.0.0", timeout=60, calls=["pipe/endless"])
def endless(depth: int) -> int:
    """Calls itself until the mesh says that it is enough."""
    return int(algomesh.current().client.algo("pipe/endless").pipe(depth + 1).result)


@algorithm("pipe/hare", version="1.0.0", timeout=120, concurrency=64, calls=["pipe/hare"])
async def hare(depth: int) -> int:
    """Calls itself three times at every depth: as deep as may be it would be two thousand billion runs."""
    algo = algomesh.current().client.algo("pipe/hare")
    return sum([int((await algo.pipe(depth + 1)).result) for _ in range(3)])


@algorithm("pipe/sleeper", version="1.0.0", timeout=60, concurrency=8)
async def sleeper(file: str) -> str:
    """Sleep long; say in the file whether it was cancelled."""
    try:
        Path(f"{file}.began").touch()
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        Path(f"{file}.cancelled").touch()
        raise
    return "slept"


@algorithm("pipe/boss", version="1.0.0", timeout=60, calls=["pipe/sleeper"])
def boss(file: str) -> str:
    """Wait for a child."""
    return str(algomesh.current().client.algo("pipe/sleeper").pipe(file).result)


@algorithm("pipe/numbers", version="1.0.0", timeout=60)
def numbers(n: int) -> Iterator[int]:
    yield from range(n)


@algorithm("pipe/squares", version="1.0.0", timeout=60)
def squares(values: Iterator[int]) -> Iterator[int]:
    for value in values:
        yield value * value


@algorithm("pipe/nap", version="1.0.0", timeout=60, max_instances=8)
def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds
