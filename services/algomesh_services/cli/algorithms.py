"""`publish` and `ls`."""

import sys
from typing import Any

from algomesh.nats_transport import translate
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
    Column("published", "published", lambda since: f"{ago(since)} ago" if since else ""),
    Column("description", "description"),
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
            }
            for entry in entries
            for version in reversed(entry.versions)
        ]

    rows = run(work, needs_nats_for="ls")
    print_rows(rows, _LS, as_json=as_json, empty="nothing is published yet; publish with: algomesh publish PATH")


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
