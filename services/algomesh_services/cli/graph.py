"""`graph`: which algorithm follows which, in the terminal, as a picture, or as JSON."""

import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import typer

from algomesh.requests import ask
from algomesh_broker import platform
from algomesh_broker.connection import Connection
from algomesh_broker.platform import Edge
from algomesh_services.cli.output import Column, is_terminal, note, print_json, print_rows, say_error
from algomesh_services.cli.session import errors_as_lines, find_version, run

_DRAWS_WITH: Final = ("matplotlib", "networkx")


def delay(seconds: float) -> str:
    """A delay with the digits that matter: `340 ms`, `1.2 s`, `3.5 min`."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 99.95 else f"{seconds / 60:.1f} min"


_FIGURES: Final = (
    Column("probability", "probability", lambda value: f"{value:.2f}", is_number=True),
    Column("delay_s", "after", delay, is_number=True),
    Column("in_time", "in time", lambda share: "–" if share is None else f"{100 * share:.0f} %", is_number=True),
    Column("count", "seen", lambda count: f"{count:,.0f}" if count >= 0.5 else "<1", is_number=True),
)
_FLAT: Final = (Column("caller_of", "algorithm"), Column("algorithm", "followed by"), *_FIGURES)


def graph(algorithm: str, *, svg: Path | None, png: Path | None, as_json: bool) -> None:
    """Print or draw the graph; `svg` and `png` are the files to draw it into."""
    files = [(path, format_) for path, format_ in ((svg, "svg"), (png, "png")) if path is not None]
    missing = [name for name in _DRAWS_WITH if files and importlib.util.find_spec(name) is None]
    if missing:
        say_error(
            f"drawing needs {' and '.join(missing)}, which {'are' if len(missing) > 1 else 'is'} not installed: "
            "pip install 'algomesh[pictures]'; without --svg and --png the graph is printed"
        )
        raise typer.Exit(1)

    async def work(connection: Connection) -> list[Edge]:
        chosen = (await find_version(connection, algorithm))[0] if algorithm else ""
        answer = await ask(connection, "prewarmer", "graph", "", platform.Graph(algorithm=chosen), platform.GraphEdges)
        return answer.edges

    edges = run(work, needs_nats_for="graph")
    edges.sort(key=lambda edge: (edge.caller_of, -edge.probability, edge.algorithm))
    if files and edges:
        _draw(edges, files, algorithm)
    if as_json:
        print_json([msgspec.structs.asdict(edge) for edge in edges])
    elif not edges:
        about = f"nothing has followed {algorithm} yet" if algorithm else "the mesh has learned nothing yet"
        note(f"{about}; it learns when algorithms call one another, or are stages of a pipeline")
    elif not files and is_terminal(sys.stdout):
        _print_tree(edges)
    elif not files:
        print_rows([msgspec.structs.asdict(edge) for edge in edges], _FLAT, as_json=False, empty="")


def tree(edges: Sequence[Edge]) -> Iterator[tuple[str, Edge | None]]:
    """The lines of the graph as a tree: what stands there, and the edge that leads to it (None for a beginning).

    What follows an algorithm is shown where it comes first; later it has `…` where there would be more.
    """
    after: dict[str, list[Edge]] = {}
    for edge in edges:
        after.setdefault(edge.caller_of, []).append(edge)
    followers = {edge.algorithm for edge in edges if edge.algorithm != edge.caller_of}
    shown: set[str] = set()
    # Beginnings first; then whatever goes round in circles, and so follows something itself.
    for name in sorted(after, key=lambda name: name in followers):
        if name not in shown:
            yield name, None
            yield from _below(name, after, shown)


def _below(root: str, after: Mapping[str, Sequence[Edge]], shown: set[str]) -> Iterator[tuple[str, Edge]]:
    shown.add(root)
    waiting = [(root, "", iter(after[root]), len(after[root]))]
    while waiting:
        name, indent, rest, left = waiting.pop()
        edge = next(rest, None)
        if edge is None:
            continue
        waiting.append((name, indent, rest, left - 1))
        is_last, is_known = left == 1, edge.algorithm in shown
        more = " …" if is_known and edge.algorithm in after else ""
        yield f"{indent}{'└─' if is_last else '├─'} {edge.algorithm}{more}", edge
        if not is_known and edge.algorithm in after:
            shown.add(edge.algorithm)
            found = after[edge.algorithm]
            waiting.append((edge.algorithm, f"{indent}{'   ' if is_last else '│  '}", iter(found), len(found)))


def _print_tree(edges: Sequence[Edge]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("algorithm, and what follows it", overflow="fold")
    for column in _FIGURES:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for line, edge in tree(edges):
        figures = msgspec.structs.asdict(edge) if edge is not None else {}
        cells = [column.write(figures[column.field]) if figures else "" for column in _FIGURES]
        style = "bold" if edge is None else "" if edge.probability >= 0.5 else "dim"
        table.add_row(Text(line, style=style), *cells)
    Console().print(table)


def _draw(edges: Sequence[Edge], files: Sequence[tuple[Path, str]], algorithm: str) -> None:
    from algomesh_services.cli.graph_layout import lay_out
    from algomesh_services.cli.graph_picture import draw

    layout = lay_out(edges)
    if not layout.links:
        note("nothing is drawn: each of these follows less than once in twenty times")
        return
    with errors_as_lines():
        for path, format_ in files:
            draw(layout, path, format_, title=f"What follows what, around {algorithm}" if algorithm else "")
            note(f"drawn: {path}")
    if layout.left_out:
        note(f"{layout.left_out} of {len(edges)} edges are not drawn: the unlikely ones; without FILE all are listed")
