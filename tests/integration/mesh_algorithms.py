"""Algorithms for the tests of a whole mesh: the seed's two, and what users' code may do to it."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import algomesh
from algomesh import algorithm


@algorithm("username/cleaning", version="1.0.0")
def cleaning(text: str) -> str:
    return " ".join(text.lower().split())


@algorithm("username/preprocessing", version="1.0.0")
def preprocessing(text: str) -> list[str]:
    return text.split()


@algorithm("test/echo", version="1.0.0")
def echo(value):  # type: ignore[no-untyped-def]  # as users write it
    return value


@algorithm("test/double", version="1.0.0")
def double(values: np.ndarray) -> np.ndarray:
    return 2 * values


@algorithm("test/about", version="1.0.0", timeout=30)
def about(_: Any) -> dict[str, Any]:
    run = algomesh.current()
    run.log.info("asked about itself")
    return {
        "run": run.run, "root": run.root, "caller": run.caller, "remaining_s": run.remaining_s,
        "algorithm": run.algorithm, "pid": os.getpid(),
    }  # fmt: skip


@algorithm("test/sneak", version="1.0.0")
def sneak(reference: str) -> str:
    """Call what was not declared."""
    return str(algomesh.current().client.algo(reference).pipe("x").result)


@algorithm("test/once", version="1.0.0", timeout=60)
def once(job: dict[str, Any]) -> int:
    """Say in a file that a run began, and whose it was."""
    with Path(job["file"]).open("a") as file:
        file.write(f"{job.get('name', 'run')} {os.getpid()}\n")
    time.sleep(job.get("seconds", 0.01))
    return os.getpid()


@algorithm("test/rude", version="1.0.0", timeout=20)
def rude(how: str) -> str:
    match how:
        case "print":
            for _ in range(1000):
                print("x" * 100_000)
        case "fork":
            if os.fork() == 0:
                os.setsid()
                time.sleep(600)
        case "close":
            os.close(2)
            print("into the void", file=sys.stderr)
        case "signals":
            signal_all()
        case "exit":
            os._exit(3)
    return how


def signal_all() -> None:
    """Take the signals away; only the main thread may, and runs are not always there."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        try:
            signal.signal(number, signal.SIG_IGN)
        except ValueError:
            return


@algorithm("test/greedy", version="1.0.0", memory="256Mi", timeout=20)
def greedy(mebibytes: int) -> int:
    block = b"x" * (mebibytes * 2**20)
    time.sleep(3)
    return len(block)


@algorithm("test/unloadable", version="1.0.0")
class Unloadable:
    def load(self) -> None:
        raise RuntimeError("no weights here")

    def apply(self, value: Any) -> Any:
        return value


@algorithm("test/longload", version="1.0.0")
class LongLoad:
    def load(self) -> None:
        time.sleep(10)

    def apply(self, value: Any) -> int:
        return os.getpid()
