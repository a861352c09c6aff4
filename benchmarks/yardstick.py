"""The yardstick: the demo chain written by hand on nats-py alone, as well as we can.

Three worker processes in queue groups, uvloop, msgpack; either one request per hop from the client, or a routing
slip that the workers hand on: what somebody would write who needs exactly this chain, and none of starting,
parking, liveness, identity, versions, records.
"""

import asyncio
import os
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

import msgspec
import nats
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
STAGES = ("clean", "tokenize", "count")


def run_stage(stage: str, value: Any) -> Any:
    """The same work as demo/clean, demo/tokenize, demo/count."""
    if stage == "clean":
        return " ".join(value.lower().split())
    if stage == "tokenize":
        return value.split()
    return len(value)


async def serve(url: str, stage: str) -> None:
    """One worker."""
    connection = await nats.connect(url)

    async def answer(message: Msg) -> None:
        try:
            reply = {"ok": run_stage(stage, _decode(message.data))}
        except Exception as error:
            reply = {"error": str(error)}
        await message.respond(_encode(reply))

    async def hand_on(message: Msg) -> None:
        slip, value = _decode(message.data)
        try:
            output = run_stage(stage, value)
        except Exception as error:
            await connection.publish(message.reply, _encode({"error": str(error)}))
            return
        if slip:
            await connection.publish(f"slip.{slip[0]}", _encode((slip[1:], output)), message.reply)
        else:
            await connection.publish(message.reply, _encode({"ok": output}))

    await connection.subscribe(f"yardstick.{stage}", queue="workers", cb=answer)
    await connection.subscribe(f"slip.{stage}", queue="workers", cb=hand_on)
    await connection.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()


class Yardstick:
    """The workers and a client."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._workers: list[subprocess.Popen[bytes]] = []
        self._client: Client | None = None

    async def __aenter__(self) -> Self:
        for stage in STAGES:
            command = [sys.executable, "-m", "benchmarks.yardstick", self._url, stage]
            worker = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert worker.stdout is not None
            await asyncio.to_thread(worker.stdout.readline)
            self._workers.append(worker)
        self._client = await nats.connect(self._url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()
        for worker in self._workers:
            worker.kill()
            worker.wait()
            if worker.stdout is not None:
                worker.stdout.close()

    @property
    def pids(self) -> list[int]:
        """The workers and this process."""
        return [os.getpid(), *(worker.pid for worker in self._workers)]

    async def chain(self, text: str) -> Any:
        """clean, tokenize, count: three requests."""
        assert self._client is not None
        value: Any = text
        for stage in STAGES:
            reply = _decode((await self._client.request(f"yardstick.{stage}", _encode(value), timeout=10)).data)
            if "error" in reply:
                raise RuntimeError(reply["error"])
            value = reply["ok"]
        return value

    async def travel(self, text: str) -> Any:
        """clean, tokenize, count: one request, handed on by the workers."""
        assert self._client is not None
        slip = _encode((STAGES[1:], text))
        reply = _decode((await self._client.request(f"slip.{STAGES[0]}", slip, timeout=10)).data)
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply["ok"]


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], sys.argv[2]))
