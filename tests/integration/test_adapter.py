"""Programs that know nothing of the mesh, spoken to as the adapter does: real processes and a real HTTP server."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from algomesh import errors
from algomesh.adapter import program
from algomesh.adapter.lines import Lines
from algomesh.adapter.per_call import PerCall
from algomesh.adapter.posting import Posting
from tests.conditions import is_alive, until

pytestmark = pytest.mark.integration

# A program of lines: what it is told is what it does.
OBEYS = """
import json, os, sys, time
for line in sys.stdin:
    wish = json.loads(line)
    match wish:
        case {"pid": _}: print(os.getpid(), flush=True)
        case {"garbage": text}: print(text, flush=True)
        case {"exit": code}: sys.exit(code)
        case {"sleep": seconds}: time.sleep(seconds)
        case {"twice": value}: os.write(1, 2 * (json.dumps(value) + "\\n").encode())
        case {"huge": count}: print("x" * count, flush=True)
        case {"fail": text}: print(json.dumps({"error": text, "type": "Moody"}), flush=True)
        case _: print(json.dumps(wish), flush=True)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", dedent(code)]


@pytest_asyncio.fixture
async def lines() -> AsyncIterator[Lines]:
    async with Lines(python(OBEYS)) as program_:
        yield program_


class TestLines:
    @pytest.mark.parametrize("value", ["grüß\nnext", "", 3.5, None, [1, "two"], {"a": {"b": []}}])
    async def test_what_goes_in_comes_out(self, lines: Lines, value: Any) -> None:
        assert await lines.run(value) == value

    async def test_one_child_answers_call_after_call(self, lines: Lines) -> None:
        assert await lines.run({"pid": 1}) == await lines.run({"pid": 1})

    async def test_calls_at_once_have_a_child_each(self, lines: Lines) -> None:
        pids = await asyncio.gather(*(lines.run({"pid": 1}) for _ in range(3)))

        assert len(set(pids)) == 3

    async def test_its_own_word_for_a_failure_is_the_callers(self, lines: Lines) -> None:
        with pytest.raises(errors.AlgorithmError, match="not today") as raised:
            await lines.run({"fail": "not today"})

        assert raised.value.error_type == "Moody"

    async def test_an_end_before_the_answer_is_told_and_the_next_call_works(self, lines: Lines) -> None:
        with pytest.raises(errors.AlgorithmError, match="ended with exit code 3 before it answered") as raised:
            await lines.run({"exit": 3})

        assert raised.value.error_type == "ProgramEnded"
        assert await lines.run("again") == "again"

    async def test_a_death_between_two_calls_is_nobodys_error(self, lines: Lines) -> None:
        pid = await lines.run({"pid": 1})
        os.kill(pid, 9)
        await until(lambda: not is_alive(pid))

        assert await lines.run("again") == "again"

    async def test_garbage_is_a_bad_output_and_the_next_call_works(self, lines: Lines) -> None:
        with pytest.raises(errors.BadOutput, match="no JSON: 'Loading model'"):
            await lines.run({"garbage": "Loading model"})

        assert await lines.run("again") == "again"

    async def test_an_answer_too_many_is_not_taken_for_the_next(self, lines: Lines) -> None:
        await lines.run({"twice": "first"})

        assert await lines.run("second") == "second"
        assert await lines.run("third") == "third"

    async def test_a_line_without_end_is_cut_off(self, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(program, "LONGEST_BYTES", 100_000)
        async with Lines(python(OBEYS)) as small:
            with pytest.raises(errors.BadOutput, match="a line of over"):
                await small.run({"huge": 1_000_000})

            assert await small.run("again") == "again"

    async def test_an_input_larger_than_a_pipe_goes_through(self, lines: Lines) -> None:
        text = "x" * 3_000_000

        assert await lines.run(text) == text

    async def test_a_child_whose_call_was_given_up_is_ended(self, lines: Lines) -> None:
        pid = await lines.run({"pid": 1})
        calling = asyncio.create_task(lines.run({"sleep": 60}))
        await asyncio.sleep(0)
        calling.cancel()

        with pytest.raises(asyncio.CancelledError):
            await calling

        await until(lambda: not is_alive(pid))
        assert await lines.run("again") == "again"

    @pytest.mark.parametrize("value", [b"\x00", float("nan"), object()])
    async def test_what_is_no_json_is_a_bad_input(self, lines: Lines, value: Any) -> None:
        with pytest.raises(errors.BadInput):
            await lines.run(value)

    async def test_a_command_that_is_not_there_is_known_at_once(self) -> None:
        with pytest.raises(errors.LoadFailed, match="there is no such program"):
            async with Lines(["/nowhere/program"]):
                pass

    async def test_nothing_is_left_behind(self, tmp_path: Path) -> None:
        file = tmp_path / "grandchild"
        code = f"""
            import subprocess, sys
            child = subprocess.Popen(["sleep", "600"])
            open({str(file)!r}, "w").write(str(child.pid))
            for line in sys.stdin: print(line, end="", flush=True)
        """
        async with Lines(python(code)) as program_:
            await program_.run(1)

        await until(lambda: not is_alive(int(file.read_text())))


class TestPerCall:
    async def test_input_is_stdin_and_output_is_stdout(self) -> None:
        assert await PerCall(["tr", "a-z", "A-Z"]).run("hello") == "HELLO"

    async def test_bytes_and_json_go_in_as_they_are(self) -> None:
        assert await PerCall(["cat"]).run(b"\x00\xff") == b"\x00\xff"
        assert await PerCall(["cat"], "json").run({"a": [1]}) == {"a": [1]}
        assert await PerCall(["cat"], "binary").run("text") == b"text"

    async def test_the_last_line_of_stderr_says_why_it_failed(self, capfd: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(errors.AlgorithmError, match="exit code 3: no such model") as raised:
            await PerCall(["sh", "-c", "echo loading >&2; echo no such model >&2; exit 3"]).run("x")

        assert raised.value.error_type == "ProgramFailed"
        assert "loading" in capfd.readouterr().err

    async def test_a_program_that_reads_nothing_is_no_error(self) -> None:
        assert await PerCall(["echo", "hi"]).run("x" * 3_000_000) == "hi"

    @pytest.mark.parametrize(("gives", "said"), [("json", "no JSON"), ("text", "no UTF-8")])
    async def test_what_is_not_of_its_kind_is_a_bad_output(self, gives: Any, said: str) -> None:
        with pytest.raises(errors.BadOutput, match=said):
            await PerCall(["printf", "\\377"], gives).run("x")

    async def test_an_output_without_end_is_cut_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(program, "LONGEST_BYTES", 1_000_000)

        with pytest.raises(errors.BadOutput, match="over"):
            await PerCall(["yes"]).run("x")

    async def test_one_that_hangs_ends_with_its_call(self, tmp_path: Path) -> None:
        file = tmp_path / "pid"
        calling = asyncio.create_task(PerCall(["sh", "-c", f"echo $$ > {file}; sleep 600"]).run("x"))
        await until(lambda: file.exists() and file.read_text().strip())
        calling.cancel()

        with pytest.raises(asyncio.CancelledError):
            await calling

        await until(lambda: not is_alive(int(file.read_text())))

    @pytest.mark.parametrize("turns", range(6))
    async def test_a_call_may_be_given_up_at_any_moment_of_its_start(self, turns: int) -> None:
        calling = asyncio.create_task(PerCall(["sleep", "600"]).run("x"))
        for _ in range(turns):
            await asyncio.sleep(0)
        calling.cancel()

        async with asyncio.timeout(20):
            with pytest.raises(asyncio.CancelledError):
                await calling

    async def test_a_program_that_is_not_there_is_a_typed_error(self) -> None:
        with pytest.raises(errors.LoadFailed, match="there is no such program"):
            await PerCall(["/nowhere/program"]).run("x")


class Server:
    """A real HTTP server; what it was sent lies in `heard`."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.given_up = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.heard.append((request.content_type, body))
        match request.path.strip("/").split("/"):
            case ["echo"]:
                return web.Response(body=body, content_type=request.content_type)
            case ["status", status]:
                return web.Response(status=int(status), text="says why")
            case ["liar"]:
                return web.Response(body=b"{", content_type="application/json")
            case ["huge"]:
                return web.Response(body=b"x" * 3_000_000)
            case ["cut"]:
                assert request.transport is not None
                request.transport.abort()
        try:
            await asyncio.sleep(60)
        finally:
            self.given_up.set()
        return web.Response()


@pytest_asyncio.fixture
async def server() -> AsyncIterator[tuple[str, Server]]:
    there = Server()
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/{path:.*}", there.handle)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}", there
    finally:
        await runner.cleanup()


class TestPosting:
    @pytest.mark.parametrize("value", ["grüß", {"a": [1, None]}, b"\x00\xff", [1.5]])
    async def test_what_is_posted_comes_back(self, server: tuple[str, Server], value: Any) -> None:
        async with Posting(f"{server[0]}/echo") as posting:
            assert await posting.run(value) == value

    async def test_the_media_type_says_what_it_is(self, server: tuple[str, Server]) -> None:
        async with Posting(f"{server[0]}/echo") as posting:
            for value in ("text", {"a": 1}, b"bytes"):
                await posting.run(value)

        assert server[1].heard == [
            ("text/plain", b"text"),
            ("application/json", b'{"a":1}'),
            ("application/octet-stream", b"bytes"),
        ]

    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (400, errors.BadInput),
            (422, errors.BadInput),
            (413, errors.PayloadTooLarge),
            (429, errors.Overloaded),
            (302, errors.AlgorithmError),
            (404, errors.AlgorithmError),
            (500, errors.AlgorithmError),
        ],
    )
    async def test_other_statuses_are_typed_errors(
        self, server: tuple[str, Server], status: int, kind: type[errors.MeshError]
    ) -> None:
        async with Posting(f"{server[0]}/status/{status}") as posting:
            with pytest.raises(kind, match=f"answered {status}.*says why") as raised:
                await posting.run("x")

        assert raised.value.error_type == f"HTTP {status}"

    async def test_an_answer_that_is_not_what_it_says_is_a_bad_output(self, server: tuple[str, Server]) -> None:
        async with Posting(f"{server[0]}/liar") as posting:
            with pytest.raises(errors.BadOutput, match="is not the json it says"):
                await posting.run("x")

    async def test_an_answer_without_end_is_cut_off(
        self, server: tuple[str, Server], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(program, "LONGEST_BYTES", 1_000_000)
        async with Posting(f"{server[0]}/huge") as posting:
            with pytest.raises(errors.BadOutput, match="over"):
                await posting.run("x")

    async def test_a_server_that_goes_in_the_middle_is_a_typed_error(self, server: tuple[str, Server]) -> None:
        async with Posting(f"{server[0]}/cut") as posting:
            with pytest.raises(errors.AlgorithmError, match="does not answer") as raised:
                await posting.run("x")

        assert raised.value.error_type == "Unanswered"

    async def test_a_server_that_is_not_there_is_a_typed_error_at_once(self) -> None:
        began = time.monotonic()
        async with Posting("http://127.0.0.1:9/predict") as posting:
            with pytest.raises(errors.AlgorithmError, match="does not answer"):
                await posting.run("x")

        assert time.monotonic() - began < 5

    async def test_a_call_that_was_given_up_aborts_the_request(self, server: tuple[str, Server]) -> None:
        async with Posting(f"{server[0]}/hang") as posting:
            calling = asyncio.create_task(posting.run("x"))
            await until(lambda: server[1].heard)
            calling.cancel()

            with pytest.raises(asyncio.CancelledError):
                await calling
            await until(server[1].given_up.is_set)
