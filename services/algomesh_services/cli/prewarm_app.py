"""The commands `prewarm …` and their help; as in app.py, what a command does is imported when it runs."""

import sys
from typing import Annotated, Final

import typer

_STYLE: Final = "rich" if sys.stdout.isatty() else None
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON: a list of objects.")]

app = typer.Typer(
    rich_markup_mode=_STYLE,
    no_args_is_help=True,
    help="See what is started ahead, what that brings, and what other rules would have cost.",
)


@app.command("replay")
def replay(
    latency_values: Annotated[
        list[float] | None,
        typer.Option("--latency-value", metavar="V", help="GPU-seconds that a second of waiting is worth; repeatable."),
    ] = None,
    keep_alives: Annotated[
        list[str] | None,
        typer.Option("--keep-alive", metavar="S", help="A fixed idle time, like 60 or 10m; repeatable."),
    ] = None,
    since: Annotated[str, typer.Option(metavar="TIME", help="How far back, like 90m or 24h; 168h at most.")] = "24h",
    as_json: AsJson = False,
) -> None:
    """Replay what ran lately under other rules, and say what each would have cost: GPU-hours held for nothing,
    seconds that callers waited more than in a mesh that is always warm, and cold starts.

    Without options it compares the pre-warmer at 5 with idle times of one and of ten minutes, and with everything
    always warm. Nothing is changed in the mesh: set ALGOMESH_LATENCY_VALUE, or latency_value= of an algorithm.

    \b
    algomesh prewarm replay
    algomesh prewarm replay --latency-value 1 --latency-value 30 --since 168h
    algomesh prewarm replay --latency-value 5 --keep-alive 60 --keep-alive 10m
    """
    from algomesh_services.cli import prewarm_replay as replay_command

    replay_command.replay(
        latency_values=latency_values or [], keep_alives=keep_alives or [], since=since, as_json=as_json
    )


@app.command("starts")
def starts(
    algorithm: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Only starts of this algorithm.")] = "",
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="How many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the latest starts of instances, newest first: why each was made, and what became of it.

    Kinds: call (somebody waited), next (likely next in a request), stage (next in a pipeline), gap (kept or started
    again between requests), minimum (min_instances).

    \b
    algomesh prewarm starts
    algomesh prewarm starts --algorithm text/sentiment --limit 100
    """
    from algomesh_services.cli import prewarm as prewarm_commands

    prewarm_commands.starts(algorithm=algorithm, limit=limit, as_json=as_json)


@app.command("savings")
def savings(
    since: Annotated[
        str, typer.Option(metavar="TIME", help="How far back, like 90m or 24h; else since the pre-warmer began.")
    ] = "",
    calls: Annotated[
        int, typer.Option("--calls", metavar="N", min=0, max=1_000, help="List the latest N calls that waited less.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Show what starting ahead has brought and cost: starts by reason and how many were used, GPU-seconds held for
    nothing, seconds saved, and the share of calls that still met a cold start.

    Saved are the seconds that calls did not wait, because their instance was started ahead, or held for longer than
    its fixed idle time. With --calls they are listed one by one: why is next, stage or gap for a start ahead, else
    kept; of a busy version one row may stand for several calls.

    \b
    algomesh prewarm savings
    algomesh prewarm savings --since 24h
    algomesh prewarm savings --calls 20
    """
    from algomesh_services.cli import prewarm as prewarm_commands

    prewarm_commands.savings(since=since, calls=calls, as_json=as_json)
