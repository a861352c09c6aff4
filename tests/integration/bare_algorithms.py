"""Algorithms that the tests of the lanes run in real instance processes."""

import asyncio
import ctypes
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import algomesh


@algomesh.algorithm("t/clean", version="1.0.0")
def clean(text: str) -> str:
    return " ".join(text.lower().split())


@algomesh.algorithm("t/slow", version="1.0.0", timeout=20)
def slow(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


@algomesh.algorithm("t/once", version="1.0.0")
def once(job: dict[str, str]) -> str:
    """Write a line per execution, so that a test can count them."""
    with Path(job["file"]).open("a") as file:
        file.write(f"{job['name']}\n")
    time.sleep(float(job.get("seconds", "0.01")))
    return job["name"]


@algomesh.algorithm("t/brief", version="1.0.0", timeout=0.3)
def brief(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


@algomesh.algorithm("t/waits", version="1.0.0", timeout=20, concurrency=4)
async def waits(job: dict[str, Any]) -> str:
    try:
        await asyncio.sleep(job["seconds"])
    except asyncio.CancelledError:
        if "file" in job:
            Path(job["file"]).write_text("cancelled")
        raise
    return "waited"


@algomesh.algorithm("t/gil", version="1.0.0", timeout=30)
def gil(seconds: float) -> str:
    """Hold the GIL, as badly behaved native code does."""
    ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))
    return "held"


@algomesh.algorithm("t/mishap", version="1.0.0", timeout=5)
def mishap(kind: str) -> Any:
    match kind:
        case "raise":
            raise KeyError("no such thing")
        case "typed":
            raise algomesh.AlgorithmError("demo failure", error_type="InputError")
        case "exit":
            sys.exit(3)
        case "lock":
            return threading.Lock()
        case "nan":
            return {"a": [float("nan")]}
        case "large":
            return b"x" * (9 * 2**20)
        case "die":
            os._exit(3)
        case "print":
            print("hello from the run")
            return "printed"
    return "fine"


@algomesh.algorithm("t/parent", version="1.0.0", timeout=20, calls=["t/parent"])
def parent(depth: int) -> int:
    """Call itself, to find out whether a run that waits gives its slot back."""
    if depth == 0:
        return 0
    below = algomesh.current().client.algo("t/parent").pipe(depth - 1)
    return int(below.result) + 1


@algomesh.algorithm("t/aparent", version="1.0.0", timeout=20, calls=["t/aparent"])
async def aparent(depth: int) -> int:
    if depth == 0:
        return 0
    below = await algomesh.current().client.algo("t/aparent").pipe(depth - 1)
    return int(below.result) + 1


@algomesh.algorithm("t/upper", version="1.0.0")
def upper(text: str) -> str:
    return text.upper()


@algomesh.algorithm("t/exclaim", version="1.0.0")
def exclaim(text: str) -> str:
    return f"{text}!"


@algomesh.algorithm("t/words", version="1.0.0")
def words(text: str) -> list[str]:
    return text.split()


@algomesh.algorithm("t/merge", version="1.0.0")
def merge(parts: list[str]) -> str:
    return "+".join(parts)


@algomesh.algorithm("t/nap", version="1.0.0", timeout=20)
def nap(text: str) -> str:
    """Sleep as long as the text says: `0.3 x`."""
    time.sleep(float(text.split(maxsplit=1)[0]))
    return text


@algomesh.algorithm("t/log", version="1.0.0", retry=2)
def write_down(text: str) -> str:
    """Append a line to a file, `FILE words`, so that a test can count runs."""
    with Path(text.split(maxsplit=1)[0]).open("a") as file:
        file.write("ran\n")
    return text


@algomesh.algorithm("t/unrepeatable", version="1.0.0", timeout=20, retry=False)
def unrepeatable(text: str) -> str:
    return text


@algomesh.algorithm("t/picky", version="1.0.0")
def picky(text: str) -> str:
    if "bad" in text:
        raise ValueError(f"{text!r} is bad")
    return text


@algomesh.algorithm("t/gate", version="1.0.0", timeout=20)
def gate(text: str) -> str:
    """Wait until the file that the text names last is there."""
    while not Path(text.rsplit(maxsplit=1)[-1]).exists():
        time.sleep(0.01)
    return text


@algomesh.algorithm("t/counts", version="1.0.0", timeout=30)
def counts(job: dict[str, Any]) -> Iterator[int]:
    """Yield `n` numbers; before number `stop` wait for the file `gate`, fail at `fail`, note each in `file`."""
    try:
        for number in range(job["n"]):
            if number == job.get("stop"):
                while not Path(job["gate"]).exists():
                    time.sleep(0.005)
            if number == job.get("fail"):
                raise RuntimeError("no more numbers")
            if "file" in job:
                Path(job["file"]).write_text(str(number))
            yield number
    finally:
        if "closed" in job:
            Path(job["closed"]).touch()


@algomesh.algorithm("t/acounts", version="1.0.0", timeout=30)
async def acounts(n: int) -> AsyncIterator[int]:
    for number in range(n):
        await asyncio.sleep(0)
        yield number


@algomesh.algorithm("t/squares", version="1.0.0", timeout=30)
def squares(numbers: Iterator[int]) -> Iterator[int]:
    for number in numbers:
        yield number * number


@algomesh.algorithm("t/asquares", version="1.0.0", timeout=30)
async def asquares(numbers: AsyncIterator[int]) -> AsyncIterator[int]:
    async for number in numbers:
        yield number * number


@algomesh.algorithm("t/total", version="1.0.0", timeout=30)
def total(numbers: Iterator[int]) -> int:
    return sum(numbers)


@algomesh.algorithm("t/first", version="1.0.0", timeout=30)
def first(numbers: Iterator[int]) -> int:
    return next(iter(numbers))


@algomesh.algorithm("t/double", version="1.0.0")
def double(number: int) -> int:
    return 2 * number


@algomesh.algorithm("t/together", version="1.0.0", timeout=10, batch=algomesh.Batch(max=8, wait_ms=50))
def together(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Say with how many a job ran; `seconds` holds its batch up, `file` gets a line per execution."""
    for job in jobs:
        if "file" in job:
            with Path(job["file"]).open("a") as file:
                file.write(f"{job['name']}:{len(jobs)}\n")
    if any(job.get("bad") for job in jobs):
        raise ValueError(f"one of {len(jobs)} is bad")
    until = max((job.get("seconds", 0.0) for job in jobs), default=0.0)
    time.sleep(until)
    return [{"name": job["name"], "size": len(jobs), "run": algomesh.current().run} for job in jobs]


@algomesh.algorithm("t/numbers", version="1.0.0", batch=8)
def numbers(values: list[int]) -> list[Any]:
    time.sleep(0.05)
    return [float("nan") if value == 13 else value * value for value in values]


@algomesh.algorithm("t/miscounts", version="1.0.0", batch=8)
def miscounts(values: list[int]) -> list[int]:
    """Forget the odd ones."""
    time.sleep(0.05)
    return [value for value in values if value % 2 == 0]


@algomesh.algorithm("t/atogether", version="1.0.0", batch=8, timeout=10)
class Together:
    """The same in async code; says in a file when it was cancelled."""

    def load(self) -> None:
        self.loaded = True

    async def apply(self, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert self.loaded
        try:
            await asyncio.sleep(max(job.get("seconds", 0.0) for job in jobs))
        except asyncio.CancelledError:
            for job in jobs:
                Path(job["cancelled"]).write_text("cancelled")
            raise
        return [{"name": job["name"], "size": len(jobs)} for job in jobs]


@algomesh.algorithm("t/calls-together", version="1.0.0", batch=8)
def calls_together(values: list[float]) -> list[str]:
    """Try to call a child, which a batch of several may not."""
    time.sleep(max(values))
    if len(values) == 1:
        return ["alone"]
    try:
        algomesh.current().client.algo("t/together").pipe({})
    except algomesh.MeshError as error:
        return [error.code] * len(values)
    return ["called"] * len(values)


@algomesh.algorithm("t/name-of", version="1.0.0", batch=8)
def name_of(answers: list[dict[str, Any]]) -> list[str]:
    return [f"{answer['name']}:{answer['size']}" for answer in answers]


@algomesh.algorithm("t/echo", version="1.0.0")
def echo(value: Any) -> Any:
    return value


@algomesh.algorithm("t/size", version="1.0.0")
def size(value: Any) -> int:
    return len(value)


def _note(text: str, word: str) -> None:
    with Path(text.split(maxsplit=1)[0]).open("a") as file:
        file.write(f"{word}\n")


@algomesh.algorithm("t/kept", version="1.0.0", cache="10m")
def kept(text: str) -> str:
    """Lower all but the file that it notes its runs in, `FILE words`; pure but for that, as the next ones are."""
    _note(text, "kept")
    file, _, words = text.partition(" ")
    return f"{file} {words.lower()}"


@algomesh.algorithm("t/kept-too", version="1.0.0", cache="10m")
def kept_too(text: str) -> str:
    _note(text, "kept-too")
    return f"{text}."


@algomesh.algorithm("t/kept-brief", version="1.0.0", cache=1)
def kept_brief(text: str) -> str:
    _note(text, "kept-brief")
    return text


@algomesh.algorithm("t/kept-gate", version="1.0.0", cache="10m", timeout=20, concurrency=4)
def kept_gate(text: str) -> str:
    """Wait until the file that the text names last is there; fail where the text has `bad` in it."""
    _note(text, "kept-gate")
    while not Path(text.rsplit(maxsplit=1)[-1]).exists():
        time.sleep(0.01)
    if "bad" in text:
        raise ValueError("bad")
    return text


@algomesh.algorithm("t/kept-large", version="1.0.0", cache="10m")
def kept_large(text: str) -> bytes:
    _note(text, "kept-large")
    return b"x" * 600_000
