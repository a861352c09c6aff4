"""Algorithms that the tests of the lanes run in real instance processes."""

import asyncio
import ctypes
import os
import sys
import threading
import time
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
