"""`ps`, `stop`, `runs` and `logs`."""

import asyncio
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from algomesh.errors import BadInput, PermissionDenied
from algomesh.requests import ask
from algomesh_broker import platform
from algomesh_broker.connection import Connection
from algomesh_services.cli.output import (
    Column,
    ago,
    is_terminal,
    make_table,
    milliseconds,
    note,
    print_json,
    print_rows,
    write,
)
from algomesh_services.cli.session import find_version, run

_PS: Final = (
    Column("algorithm", "algorithm"),
    Column("version", "version"),
    Column("instance", "instance"),
    Column("pid", "pid", is_number=True),
    Column("state", "state", is_state=True),
    Column("load", "load", is_number=True),
    Column("since", "since", ago, is_number=True),
    Column("reason", "reason"),
)
_RUNS: Final = (
    Column("run", "run", lambda run: str(run)[:12]),
    Column("algorithm", "algorithm"),
    Column("version", "version"),
    Column("caller", "caller"),
    Column("state", "state", is_state=True),
    Column("compute_ms", "compute ms", milliseconds, is_number=True),
    Column("cold_ms", "cold ms", milliseconds, is_number=True),
    Column("error", "error"),
)
_RUNS_PLAIN: Final = (Column("run", "run"), *_RUNS[1:])
_NOBODY: Final = "no instance runs; a call starts one"
_WATCH_S: Final = 1.0
_RUN_ID_LENGTH: Final = 32
_TOLD: Final = ("run", "algorithm", "instance", "timestamp")
_LATEST: Final = 1_000


def ps(*, watch: bool, as_json: bool) -> None:
    """Print the fleet, once or again and again."""

    async def work(connection: Connection) -> None:
        if not watch:
            print_rows(await _instances(connection), _PS, as_json=as_json, empty=_NOBODY)
        elif as_json or not is_terminal(sys.stdout):
            while True:
                print_rows(await _instances(connection), _PS, as_json=as_json, empty=_NOBODY)
                await asyncio.sleep(_WATCH_S)
        else:
            await _watch(connection)

    run(work, needs_nats_for="ps")


def stop(reference: str, *, as_json: bool) -> None:
    """Retire the instances of an algorithm or a version."""

    async def work(connection: Connection) -> dict[str, Any]:
        algorithm, version = await find_version(connection, reference)
        body = platform.Stop(version=version)
        done = await ask(connection, "launcher", "stop", algorithm, body, platform.Done)
        return {"algorithm": algorithm, "version": version, "stopped": done.count}

    row = run(work, needs_nats_for="stop")
    if as_json:
        print_json([row])
        return
    name = f"{row['algorithm']}/{row['version']}" if row["version"] else row["algorithm"]
    count = row["stopped"]
    what = "no instance ran" if not count else f"retired {count} instance{'s' if count > 1 else ''}"
    write(f"{name}: {what}; the next call starts one")


def runs(*, algorithm: str, root: str, limit: int, as_json: bool) -> None:
    """Print what the ledger has."""

    async def work(connection: Connection) -> list[dict[str, Any]]:
        chosen = (await find_version(connection, algorithm))[0] if algorithm else ""
        body = platform.Runs(limit=limit, algorithm=chosen, root=await _whole_run(connection, root))
        # The verb is allowed as a whole: who may see runs may see all of them.
        answer = await ask(connection, "ledger", "runs", "", body, platform.RunRows)
        return [msgspec.structs.asdict(row) for row in answer.runs]

    rows = run(work, needs_nats_for="runs")
    columns = _RUNS if is_terminal(sys.stdout) else _RUNS_PLAIN
    print_rows(rows, columns, as_json=as_json, empty="no runs yet; `algomesh call REF INPUT` makes one")


def logs(reference: str, *, run_id: str, lines: int, as_json: bool) -> None:
    """Print what instances wrote."""

    async def work(connection: Connection) -> list[platform.LogLine]:
        algorithm, version = await find_version(connection, reference)
        body = platform.Logs(version=version, run=await _whole_run(connection, run_id), lines=lines)
        return (await ask(connection, "launcher", "logs", algorithm, body, platform.LogLines)).lines

    found = run(work, needs_nats_for="logs")
    if as_json:
        print_json([msgspec.structs.asdict(line) for line in found])
        return
    if not found:
        note(f"{reference} has printed nothing")
    for line in found:
        _print_log(line)


async def _whole_run(connection: Connection, run_id: str) -> str:
    """The id that begins like this among the latest runs, since a terminal shows only the beginning of it."""
    if not run_id or len(run_id) >= _RUN_ID_LENGTH:
        return run_id
    try:
        latest = await ask(connection, "ledger", "runs", "", platform.Runs(limit=_LATEST), platform.RunRows)
    except PermissionDenied:  # who may read logs may not always read runs
        return run_id
    found = {row.run for row in latest.runs if row.run.startswith(run_id)}
    if len(found) > 1:
        raise BadInput(f"{len(found)} of the latest runs begin with {run_id}; give more of it")
    return found.pop() if found else run_id


async def _instances(connection: Connection) -> list[dict[str, Any]]:
    answer = await ask(connection, "launcher", "ps", "", platform.Ps(), platform.InstanceRows)
    return [msgspec.structs.asdict(row) for row in answer.instances]


async def _watch(connection: Connection) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False, screen=False) as live:
        while True:
            rows: Sequence[dict[str, Any]] = await _instances(connection)
            clock = time.strftime("%H:%M:%S")
            count = f"{len(rows)} instance{'' if len(rows) == 1 else 's'}" if rows else _NOBODY
            live.update(
                Group(make_table(rows, _PS), Text(f"{clock}  {count}  (Ctrl-C ends)", style="dim")), refresh=True
            )
            await asyncio.sleep(_WATCH_S)


def _readable(text: str) -> str:
    """A line that is an object, as ALGOMESH_LOG=json has them, without what stands before it already."""
    if not text.startswith('{"'):
        return text
    try:
        fields = msgspec.json.decode(text.encode(), type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return text
    event, level = fields.pop("event", None), fields.pop("level", "")
    if not isinstance(event, str) or "instance" not in fields:
        return text  # something that an algorithm has printed
    said = [event, *(f"{name}={value!r}" for name, value in fields.items() if name not in (*_TOLD, "exception"))]
    if level not in ("", "info"):
        said.insert(0, str(level))
    return " ".join(said) + (f"\n{fields['exception']}" if "exception" in fields else "")


def _print_log(line: platform.LogLine) -> None:
    at = datetime.fromtimestamp(line.at, UTC).strftime("%Y-%m-%d %H:%M:%S") if line.at else "-"
    who = f"{line.version} {line.instance}{' ' + line.run[:12] if line.run else ''}"
    if is_terminal(sys.stdout):
        write(f"\x1b[2m{at} {who}\x1b[0m  {_readable(line.line)}")
    else:
        write(f"{at} {who}  {_readable(line.line)}")
