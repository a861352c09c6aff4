"""Algorithms for the tests of streams and pipelines through a whole mesh."""

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import algomesh
from algomesh import algorithm


@algorithm("s/counts", version="1.0.0", timeout=60)
def counts(job: dict[str, Any]) -> Iterator[int]:
    """Yield `n` numbers; fail at `fail`, wait at `wait` for the file `gate`, touch `closed` at the end."""
    try:
        for number in range(job["n"]):
            if number == job.get("fail"):
                raise RuntimeError("no more numbers")
            if number == job.get("wait"):
                while not Path(job["gate"]).exists():
                    time.sleep(0.01)
            yield number
    finally:
        if "closed" in job:
            Path(job["closed"]).touch()


@algorithm("s/blobs", version="1.0.0", timeout=60)
def blobs(job: dict[str, Any]) -> Iterator[bytes]:
    """Yield `n` times `size` bytes, and say in `file` how many are on their way."""
    for number in range(job["n"]):
        with Path(job["file"]).open("a") as file:
            file.write(".")
        yield bytes([number % 256]) * job["size"]


@algorithm("s/squares", version="1.0.0", timeout=60)
async def squares(numbers: AsyncIterator[int]) -> AsyncIterator[int]:
    async for number in numbers:
        yield number * number


@algorithm("s/double", version="1.0.0")
def double(number: int) -> int:
    return 2 * number


@algorithm("s/total", version="1.0.0")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@algorithm("s/shout", version="1.0.0")
def shout(text: str) -> str:
    if text == "bad":
        raise ValueError("it is bad")
    return text.upper()


@algorithm("s/size", version="1.0.0")
def size(text: str) -> int:
    return len(text)


@algorithm("s/codes", version="1.0.0")
def codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.float32)


@algorithm("s/add", version="1.0.0")
def add(values: np.ndarray) -> int:
    return int(values.sum())


@algorithm("s/kinds", version="1.0.0")
def kinds(_: Any) -> Iterator[Any]:
    """One part of every kind."""
    yield "text"
    yield {"json": [1, None]}
    yield b"\x00\xff"
    yield np.arange(6, dtype=np.float32).reshape(2, 3)
    yield [np.arange(2), "bundle"]


@algorithm("s/relay", version="1.0.0", timeout=60, calls=["s/counts"])
def relay(job: dict[str, Any]) -> Iterator[int]:
    """Stream a child in plain code; leave it after `most` parts."""
    numbers = algomesh.current().client.algo("s/counts").stream(job)
    for number in numbers:
        yield number + 1
        if number + 1 == job.get("most"):
            numbers.close()
    if "most" not in job:
        assert numbers.metadata.algorithm == "s/counts"


@algorithm("s/arelay", version="1.0.0", timeout=60, calls=["s/counts"])
async def arelay(job: dict[str, Any]) -> list[int]:
    """Stream a child in async code."""
    async with algomesh.current().client.algo("s/counts").stream(job) as numbers:
        return [number + 1 async for number in numbers]


@algorithm("s/gathers", version="1.0.0", timeout=60, calls=["s/double"])
def gathers(n: int) -> list[int]:
    """Give a child what a generator gives."""
    doubling = algomesh.current().client.algo("s/double").each(in_flight=4)
    return list(doubling.pipe(number for number in range(n)).result)
