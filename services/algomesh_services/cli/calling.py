"""`call`: input from the command line, a file or stdin; the result on stdout as it is."""

import asyncio
import base64
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, Literal, cast

import msgspec
import typer

from algomesh.clients import DEFAULT_TIMEOUT_S, check_timeout, open_transport, parse_reference
from algomesh.content import Content
from algomesh.errors import BadInput, MeshError
from algomesh.pipeline import value_of
from algomesh.response import Response
from algomesh_services.cli.address import find_address
from algomesh_services.cli.output import is_terminal, milliseconds, note, print_json, write
from algomesh_services.cli.session import errors_as_lines, quiet_logs

Kind = Literal["text", "json", "binary"]
_KINDS: Final = ("text", "json", "binary")
_WAIT_BEFORE_WORDS_S: Final = 0.4


def call(
    reference: str, value: str | None, *, file: Path | None, kind: str | None, timeout_s: float | None, as_json: bool
) -> None:
    """Call once and print the result."""
    quiet_logs()
    if kind is not None and kind not in _KINDS:
        raise typer.BadParameter(f"{kind!r} is not one of text, json, binary", param_hint="--type")
    with errors_as_lines():
        wanted = parse_reference(reference)
        content = make_content(_read(value, file), cast("Kind | None", kind))

        async def work() -> Response:
            address = find_address()
            transport = await open_transport(address.key, address.url)
            try:
                async with _words_while_waiting(str(wanted)):
                    limit = check_timeout(timeout_s, DEFAULT_TIMEOUT_S)
                    return await transport.call(value_of(wanted), content, limit, None)
            except BadInput as error:
                raise _with_hint(error, content) from error
            finally:
                await transport.close()

        response = asyncio.run(work())
        _print(response, as_json=as_json)


def make_content(data: bytes, kind: Kind | None) -> Content:
    """The input as it travels. Without a kind it is text, or binary where it is no UTF-8. Raises BadInput."""
    if kind == "binary":
        return Content("binary", "", data)
    if kind == "json":
        try:
            msgspec.json.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadInput(f"the input is not JSON: {error}") from error
        return Content("json", "", data)
    try:
        data.decode()
    except UnicodeDecodeError as error:
        if kind is None:
            return Content("binary", "", data)
        raise BadInput("the input is not UTF-8 text; send it with --type binary") from error
    return Content("text", "", data)


def _read(value: str | None, file: Path | None) -> bytes:
    if file is not None:
        if value is not None:
            raise typer.BadParameter("give INPUT or --file, not both", param_hint="--file")
        return file.read_bytes()
    if value is None and sys.stdin.isatty():
        raise typer.BadParameter("give the input, - to read it from stdin, or --file F", param_hint="INPUT")
    if value in (None, "-"):
        return sys.stdin.buffer.read()
    assert value is not None
    return value.encode("utf-8", "surrogateescape")


def _print(response: Response, *, as_json: bool) -> None:
    metadata = response.metadata
    if as_json:
        print_json([{"result": _as_json(response.result), **msgspec.structs.asdict(metadata)}])
        return
    result = response.result
    if isinstance(result, bytes):
        if is_terminal(sys.stdout):
            note(f"{len(result):,} bytes of binary; write them to a file with > FILE")
        else:
            sys.stdout.buffer.write(result)
            sys.stdout.buffer.flush()
    elif isinstance(result, str):
        write(result)
    elif metadata.content_type == "json":
        indent = 2 if is_terminal(sys.stdout) else 0
        data = msgspec.json.encode(result)
        write((msgspec.json.format(data, indent=indent) if indent else data).decode())
    else:
        write(str(result))
    if is_terminal(sys.stderr):
        cold = f", {milliseconds(metadata.cold_start_s * 1000)} ms of it a cold start" if metadata.cold_start_s else ""
        again = f", attempt {metadata.attempts}" if metadata.attempts > 1 else ""
        took = milliseconds(metadata.duration * 1000)
        note(f"{metadata.algorithm}/{metadata.version}  {took} ms{cold}{again}  run {metadata.run_id}")


def _as_json(result: Any) -> Any:
    """Bytes as base64, arrays as nested lists; the rest is JSON already."""
    if isinstance(result, bytes):
        return base64.b64encode(result).decode()
    if isinstance(result, list):
        return [_as_json(item) for item in result]
    if isinstance(result, dict):
        return {name: _as_json(item) for name, item in result.items()}
    return result.tolist() if hasattr(result, "tolist") else result


def _with_hint(error: BadInput, content: Content) -> MeshError:
    """Somebody who typed a number or a list meant JSON more often than text."""
    if content.content_type == "text":
        with contextlib.suppress(msgspec.MsgspecError, RecursionError):
            msgspec.json.decode(content.payload)
            return BadInput(f"{error.message}; to send JSON, add --type json", stage=error.stage)
    return error


@contextlib.asynccontextmanager
async def _words_while_waiting(reference: str) -> AsyncIterator[None]:
    """Say on a terminal that a slow call is under way; a cold start may take seconds."""
    if not is_terminal(sys.stderr):
        yield
        return
    talking = asyncio.create_task(_talk(reference), name="words")
    try:
        yield
    finally:
        talking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await talking


async def _talk(reference: str) -> None:
    await asyncio.sleep(_WAIT_BEFORE_WORDS_S)
    from rich.console import Console
    from rich.status import Status

    with Status(f"waiting for {reference} (a first call starts it)", console=Console(stderr=True)):
        await asyncio.Event().wait()
