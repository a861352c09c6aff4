"""A TCP proxy in front of nats-server that counts what its clients publish, subject by subject."""

import asyncio
import contextlib
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class CountingProxy:
    """Clients connect to `url`; `published` are the subjects of their PUB and HPUB, in order."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        assert parts.hostname is not None
        assert parts.port is not None
        self._target = (parts.hostname, parts.port)
        self.published: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._on_client, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.url = f"nats://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        from_server, to_server = await asyncio.open_connection(*self._target)
        try:
            ends = [
                asyncio.ensure_future(self._count(reader, to_server)),
                asyncio.ensure_future(_copy(from_server, writer)),
            ]
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for end in ends:
                    end.cancel()
                await asyncio.gather(*ends, return_exceptions=True)
        except asyncio.CancelledError:
            pass  # asyncio's server logs a handler that was cancelled as an error
        finally:
            for side in (writer, to_server):
                side.close()
                with contextlib.suppress(OSError):
                    await side.wait_closed()
            self._tasks.discard(task)

    async def _count(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read command by command, since a payload may hold anything."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                words = line.split()
                verb = words[0].upper() if words else b""
                payload = b""
                if verb in (b"PUB", b"HPUB"):
                    payload = await reader.readexactly(int(words[-1]) + 2)
                    self.published.append(words[1].decode())
                writer.write(line + payload)
                await writer.drain()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
