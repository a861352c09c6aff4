"""A load that makes a mesh show something in every panel: calls warm and cold, errors, GPUs, pre-warming, HTTP."""

import asyncio
import contextlib
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import algomesh
from algomesh.clients import Algo
from algomesh_broker import codec, subjects
from algomesh_broker.connection import Connection
from algomesh_broker.identity import Identity
from algomesh_broker.messages import Events
from tests.integration.ledger_fixtures import run_event
from tests.integration.up_fixtures import Up

PROJECT = """
import time
from algomesh import algorithm

@algorithm("load/shout", version="1.0.0")
def shout(text: str) -> str:
    time.sleep(0.05)
    return text.upper()

@algorithm("load/paints", version="1.0.0", gpu=0.5, idle="1 s")
def paints(text: str) -> str:
    time.sleep(0.02)
    return text[::-1]

@algorithm("load/fails", version="1.0.0")
def fails(text: str) -> str:
    raise ValueError("as it should")

@algorithm("load/never", version="1.0.0", gpu=0.25)
def never(text: str) -> str:
    return text

@algorithm("load/breaks", version="1.0.0")
class Breaks:
    def load(self) -> None:
        raise RuntimeError("it does not start")

    def apply(self, text: str) -> str:
        return text

@algorithm("load/slow", version="1.0.0", concurrency=1, max_instances=1)
def slow(text: str) -> str:
    time.sleep(0.5)
    return text
"""


class Load:
    """Calls of a mesh's administrator, by several ways; `with` closes its connection."""

    def __init__(self, mesh: Up, folder: Path) -> None:
        file = folder / "load.py"
        file.write_text(PROJECT)
        result = mesh.run("publish", str(file))
        assert result.returncode == 0, result.stderr
        self.mesh = mesh
        self.client = algomesh.client(mesh.said["key"], url=mesh.said["nats"])

    def round(self) -> None:
        """Everything once."""
        with ThreadPoolExecutor(6) as pool:
            waiting = [pool.submit(self._call, self.client.algo("load/slow")) for _ in range(6)]
            names = ("shout", "paints", "fails", "breaks", "never")
            shout, paints, fails, breaks, never = (self.client.algo(f"load/{name}") for name in names)
            self._let_go("load/paints")
            self._call(fails | never)  # the second stage is started in vain
            self.mesh.run("stop", "load/shout")
            for _ in range(4):  # the first time cold, but for the second stage
                self._call(shout | paints)
            self._call(breaks)
            self.mesh.run("stop", "load/never")
            assert self.call_http("load/shout") == 200
            assert self.call_http("load/nothing") == 404
            asyncio.run(self.tell_of_others())
        for each in waiting:
            each.result()

    def _call(self, what: Algo) -> None:
        with contextlib.suppress(algomesh.MeshError):
            _ = what.pipe("text").result

    def _let_go(self, algorithm: str, within_s: float = 5.0) -> None:
        """Return when it has no instance: one that was stopped by hand would not be started ahead."""
        deadline = time.monotonic() + within_s
        while f'algomesh_instances{{algorithm="{algorithm}"' in page(self.mesh.said["metrics"]["launcher"]):
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)

    def call_http(self, reference: str) -> int:
        """One call by the gateway; the status."""
        headers = {"Authorization": f"Bearer {self.mesh.said['key']}", "Content-Type": "application/json"}
        address = f"{self.mesh.said['gateway']}/mesh/v1/call/{reference}"
        request = urllib.request.Request(address, b'"text"', headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    async def tell_of_others(self) -> None:
        """Events of a run that is not ours, which the ledger drops."""
        identity = Identity.of_key(self.mesh.said["key"])
        connection = await Connection.open(self.mesh.said["nats"], identity)
        try:
            event = run_event(caller="k~somebody")
            connection.publish(subjects.caller_events(identity.caller), codec.encode(Events(runs=[event])))
            await connection.flush(5.0)
        finally:
            await connection.close()

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()


def page(address: str, accept: str = "text/plain") -> str:
    """What a program shows."""
    request = urllib.request.Request(f"http://{address}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        text: str = answer.read().decode()
        return text
