"""`publish` and `ls`."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from algomesh.errors import MeshError
from algomesh.nats_transport import translate
from algomesh.pipeline import Pipeline
from algomesh.publishing import Progress
from algomesh.publishing import publish as publish_project
from algomesh_broker.connection import Connection
from algomesh_broker.directory import Directory
from algomesh_broker.errors import BrokerError
from algomesh_broker.platform import Published
from algomesh_services.cli.output import Column, ago, is_terminal, note, print_json, print_rows, write
from algomesh_services.cli.session import run

_LS = (
    Column("algorithm", "algorithm"),
    Column("version", "version"),
    Column("aliases", "aliases", lambda aliases: ", ".join(_share(*each) for each in aliases.items())),
    Column("published", "published", lambda since: f"{ago(since)} ago" if since else ""),
    Column("shown", "description"),
)


def publish(path: str, *, as_json: bool) -> None:
    """Publish, and say of each version whether it is new."""
    from rich.console import Console
    from rich.status import Status

    status = None
    if is_terminal(sys.stderr):
        status = Status("reading", console=Console(stderr=True))
        status.start()

    def show(progress: Progress) -> None:
        if status is not None:
            status.update(_sentence(progress))

    async def work(connection: Connection) -> list[Published]:
        return await publish_project(connection, path, report=show)

    try:
        published = run(work, needs_nats_for="publish")
    finally:
        if status is not None:
            status.stop()
    if as_json:
        print_json([_row(version) for version in published])
        return
    for version in published:
        word = "published" if version.created else "unchanged"
        write(f"{word}  {version.algorithm}/{version.version}")
    first = published[0]
    note(f"call it:  algomesh call {first.algorithm} 'some input'")


def ls(*, as_json: bool) -> None:
    """List every version, the newest of an algorithm first."""

    async def work(connection: Connection) -> list[dict[str, Any]]:
        try:
            async with await Directory.open(connection) as directory:
                entries = directory.entries()
        except BrokerError as error:
            raise translate(error) from error
        return [
            {
                "algorithm": f"{entry.owner}/{entry.name}",
                "version": version.version,
                "published": version.published_at,
                "description": version.description,
                "digest": version.digest,
                "pipeline": json.loads(version.pipeline) if version.pipeline else None,
                "aliases": shares(entry.aliases, version.version),
            }
            for entry in entries
            for version in reversed(entry.versions)
        ]

    rows = run(work, needs_nats_for="ls")
    if not as_json:
        rows = [{**row, "shown": _describe(row)} for row in rows]
    print_rows(rows, _LS, as_json=as_json, empty="nothing is published yet; publish with: algomesh publish PATH")


def shares(aliases: Mapping[str, Mapping[str, int]], version: str) -> dict[str, float]:
    """The aliases that may mean `version`, each with its share of the calls, 0 to 1."""
    return {
        alias: weights[version] / sum(weights.values())
        for alias, weights in sorted(aliases.items())
        if weights.get(version, 0) > 0
    }


def _share(alias: str, share: float) -> str:
    return alias if share == 1 else f"{alias} {100 * share:.3g} %"


def _describe(row: Mapping[str, Any]) -> str:
    """What a version is, in a line; of a pipeline, if nothing else is said of it, what it is made of."""
    if row["pipeline"] is None or row["description"]:
        return str(row["description"])
    try:
        return repr(Pipeline.from_json(json.dumps(row["pipeline"])))
    except MeshError:  # one of a newer mesh
        return "a pipeline"


def _row(version: Published) -> dict[str, Any]:
    return {
        "algorithm": version.algorithm,
        "version": version.version,
        "digest": version.digest,
        "created": version.created,
    }


def _sentence(progress: Progress) -> str:
    sentence = f"{progress.step} {progress.subject}"
    if progress.size_bytes:
        sentence += f" ({progress.done_bytes / 2**20:.1f} of {progress.size_bytes / 2**20:.1f} MiB)"
    return sentence
