"""`prewarm starts` and `prewarm savings`."""

import time
from typing import Any, Final

import msgspec
import typer

from algomesh.durations import parse_duration
from algomesh.requests import ask
from algomesh_broker import platform
from algomesh_broker.connection import Connection
from algomesh_services.cli.output import Column, ago, print_json, print_rows, write
from algomesh_services.cli.session import find_version, run

KEPT: Final = "kept"
_KINDS: Final = ("call", "next", "stage", "gap", "minimum")
_NO_STARTS: Final = "no starts yet; `algomesh call REF INPUT` makes one"


def figure(value: float) -> str:
    """As many digits as matter."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 1_000 else f"{value:,.0f}"


def share(value: float) -> str:
    """A share, 0 to 1, in per cent."""
    return f"{100 * value:.1f} %"


def _seconds(value: float) -> str:
    return f"{value:,.1f}" if value else ""


_STARTS: Final = (
    Column("started_at", "started", lambda at: f"{ago(at)} ago", is_number=True),
    Column("algorithm", "algorithm"),
    Column("version", "version"),
    Column("kind", "kind"),
    Column("start_s", "took s", _seconds, is_number=True),
    Column("use", "used"),
    Column("held_s", "idle s", _seconds, is_number=True),
    Column("saved_s", "saved s", _seconds, is_number=True),
    Column("reason", "reason"),
)
_SAVINGS: Final = (
    Column("kind", "started for"),
    Column("starts", "starts", is_number=True),
    Column("used", "used", is_number=True),
    Column("unused", "unused", is_number=True),
)

_SPARED: Final = (
    Column("at", "called", lambda at: f"{ago(at)} ago", is_number=True),
    Column("algorithm", "algorithm"),
    Column("version", "version"),
    Column("seconds", "spared s", figure, is_number=True),
    Column("why", "why"),
    Column("count", "calls", is_number=True),
    Column("caller", "caller"),
    Column("run", "run"),
    Column("root", "root"),
)


def starts(*, algorithm: str, limit: int, as_json: bool) -> None:
    """Print the latest starts with what became of them."""

    async def work(connection: Connection) -> list[dict[str, Any]]:
        chosen = (await find_version(connection, algorithm))[0] if algorithm else ""
        body = platform.Starts(limit=limit, algorithm=chosen)
        answer = await ask(connection, "prewarmer", "starts", "", body, platform.StartRows)
        return [msgspec.structs.asdict(row) for row in answer.starts]

    rows = run(work, needs_nats_for="prewarm starts")
    if not as_json:
        rows = [
            {**row, "start_s": max(0.0, row["ready_at"] - row["started_at"]), "use": _describe_use(row)} for row in rows
        ]
    print_rows(rows, _STARTS, as_json=as_json, empty=_NO_STARTS)


def savings(*, since: str, calls: int, as_json: bool) -> None:
    """Print what pre-warming brought and cost, or of the latest `calls` that were spared a wait how long."""
    since_s = duration("--since", since) if since else 0.0

    async def work(connection: Connection) -> platform.SavingsRow:
        body = platform.Savings(since=time.time() - since_s if since_s else 0.0, calls=calls)
        return await ask(connection, "prewarmer", "savings", "", body, platform.SavingsRow)

    row = run(work, needs_nats_for="prewarm savings")
    if calls:
        spared = [msgspec.structs.asdict(call) for call in row.rows]
        print_rows(spared, _SPARED, as_json=as_json, empty="no call was spared a wait yet")
        return
    cold_share = row.cold_calls / row.calls if row.calls else 0.0
    if as_json:
        answer = {**msgspec.structs.asdict(row), "cold_share": cold_share}
        print_json([{field: value for field, value in answer.items() if field != "rows"}])
        return
    kinds = [*_KINDS, *sorted(row.starts.keys() - set(_KINDS))]
    rows = [
        {"kind": kind, "starts": count, "used": row.used.get(kind, 0), "unused": count - row.used.get(kind, 0)}
        for kind in kinds
        if (count := row.starts.get(kind, 0))
    ]
    print_rows(rows, _SAVINGS, as_json=False, empty=_NO_STARTS)
    if rows or row.calls:
        write("")
        write(
            f"held idle   {figure(row.gpu_s_held)} GPU-seconds, "
            f"of which {figure(row.gpu_s_for_nothing)} for starts that nobody used"
        )
        write(f"saved       {figure(row.saved_s)} seconds that callers did not wait{_by_why(row)}")
        write(f"cold        {row.cold_calls:,} of {row.calls:,} calls ({share(cold_share)})")


def _by_why(row: platform.SavingsRow) -> str:
    calls = sum(row.spared.values())
    if not calls:
        return ""
    kept = row.spared.get(KEPT, 0)
    return f", in {calls:,} calls: {calls - kept:,} by starts ahead, {kept:,} by instances kept for longer"


def _describe_use(row: dict[str, Any]) -> str:
    if row["used_at"]:
        return f"after {max(0.0, row['used_at'] - row['started_at']):.1f} s"
    return "never" if row["ended_at"] else "not yet"


def duration(option: str, text: str) -> float:
    """Seconds of what an option says. Raises BadParameter."""
    try:
        return parse_duration(option, text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
