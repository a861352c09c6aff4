"""The demo itself: a mesh in a temporary directory, four published versions, and posts through all of them.

The mesh is a real one, started by `algomesh up` as a child; everything is done as a user would, by the SDK.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import algomesh
from algomesh.clients import AsyncClient
from algomesh.publishing import publish
from algomesh.requests import ask
from algomesh_broker import platform
from algomesh_broker.connection import Connection
from algomesh_broker.credentials import read_admin_key
from algomesh_broker.identity import Identity
from algomesh_services.demo.figures import Hop, Measured, VersionFigures, correlation
from algomesh_services.demo.mesh import own_mesh
from algomesh_services.demo.posts import CATALOG, Posts
from algomesh_services.demo.report import show_hops, show_instances, show_results, show_speed
from algomesh_services.demo.screen import Screen

PROJECTS: Final = ("text_clean", "text_lemmatize", "text_sentiment_vader", "text_sentiment_minilm")
BEFORE: Final = ("text/clean", "text/lemmatize")
SENTIMENT: Final = "text/sentiment"
IN_FLIGHT: Final = 16
_MEASURED_S: Final = 2.0
_GONE_WITHIN_S: Final = 10.0


async def run(posts: Posts, screen: Screen) -> None:
    """The whole demo. Raises MeshError, LocalError, ProgramError, OSError."""
    count = f"{len(posts.texts):,} post{'' if len(posts.texts) == 1 else 's'}"
    screen.title(f"algomesh demo: {count} through three services in a row")
    screen.text(f"Posts: {posts.source}")
    screen.text("Services: text/clean → text/lemmatize → text/sentiment, which has two versions:")
    screen.text("1.0.0 goes by a lexicon and rules (VADER), 2.0.0 by a neural network (MiniLM, torch).")
    with tempfile.TemporaryDirectory(prefix="algomesh-demo-") as folder:
        began = time.monotonic()
        screen.title("1  Start a mesh on this machine (`algomesh up`)")
        screen.moving("starting nats-server, PostgreSQL, registry, ledger, launcher, gateway …")
        async with own_mesh(Path(folder)) as running:
            screen.text(
                f"Ready after {time.monotonic() - began:.1f} s: nats-server, PostgreSQL and the mesh's four programs."
            )
            key = read_admin_key(Path(running.state) / "secrets") or ""
            async with await Connection.open(running.nats, Identity.of_key(key), name="demo") as connection:
                versions = await _publish_all(connection, screen)
                async with algomesh.connect(key, running.nats) as client:
                    figures = await _measure(client, connection, versions, posts, screen)
        screen.text("All of it is stopped, and nothing is left.")
    screen.line()
    screen.last_line(json.dumps({"posts": len(posts.texts), "versions": {f.version: f.as_json() for f in figures}}))


async def _publish_all(connection: Connection, screen: Screen) -> list[str]:
    """Publish the projects; the versions of text/sentiment there are then."""
    screen.title("2  Publish four algorithms (`algomesh publish services/catalog/…`)")
    versions: list[str] = []
    for project in PROJECTS:
        began = time.monotonic()
        published = await publish(
            connection, CATALOG / project, report=lambda step: screen.moving(f"{step.step} {step.subject} …")
        )
        for version in published:
            screen.text(f"{version.algorithm} {version.version}  {time.monotonic() - began:.1f} s")
            if version.algorithm == SENTIMENT:
                versions.append(version.version)
    return versions


async def _measure(
    client: AsyncClient, connection: Connection, versions: list[str], posts: Posts, screen: Screen
) -> list[VersionFigures]:
    screen.title("3  See what runs (`algomesh ps`)")
    show_instances(screen, await _instances(connection))

    screen.title("4  Call them: the first call starts a service, the second finds it running")
    measured: dict[str, tuple[Measured, Measured]] = {}
    for version in versions:
        await _stop_all(connection)
        cold = await _chain(client, version, posts.texts[0])
        measured[version] = cold, await _chain(client, version, posts.texts[0])
        show_hops(screen, version, *measured[version])
    await _show_second_start(client, connection, versions[-1], posts, screen)
    show_instances(screen, await _instances(connection))

    screen.title(f"5  All {len(posts.texts):,} posts through both versions, {IN_FLIGHT} at a time")
    figures = []
    for version in versions:
        scores, posts_per_s = await _classify(client, version, posts.texts, screen)
        cold, warm = measured[version]
        figures.append(
            VersionFigures(
                version=version,
                cold_ms=cold.total_ms,
                warm_ms=warm.total_ms,
                posts_per_s=posts_per_s,
                scores=scores,
                correlation=None if posts.ratings is None else correlation(scores, posts.ratings),
            )
        )
    show_results(screen, posts, figures)
    show_speed(screen, figures)
    return figures


async def _show_second_start(
    client: AsyncClient, connection: Connection, version: str, posts: Posts, screen: Screen
) -> None:
    """Heavy libraries are imported once, by the process that instances are forked from."""
    await _stop_all(connection)
    again = (await _chain(client, version, posts.texts[0])).hops[-1]
    screen.line()
    screen.text(
        f"Stopped and called once more, {again.algorithm} {again.version} answers after {again.total_ms:,.0f} ms: "
        "its libraries were imported at the first start, and new instances are forked from that process."
    )


async def _chain(client: AsyncClient, version: str, text: str) -> Measured:
    """One post through the three services, one call after the other."""
    hops: list[Hop] = []
    value: object = text
    for reference in (*BEFORE, f"{SENTIMENT}/{version}"):
        response = await client.algo(reference).pipe(value)
        hops.append(Hop.of(response.metadata))
        value = response
    assert isinstance(value, algomesh.Response)
    return Measured(hops, float(value.result["score"]))


async def _classify(client: AsyncClient, version: str, texts: list[str], screen: Screen) -> tuple[list[float], float]:
    """The scores of all posts, and how many posts a second; a small sample is sent again until that is known."""
    scores: list[float] = [0.0] * len(texts)
    began = time.monotonic()
    done = 0

    def work() -> Iterator[int]:
        while True:
            yield from range(len(texts))
            if time.monotonic() - began > _MEASURED_S:
                return

    async def worker(indices: Iterator[int]) -> None:
        nonlocal done
        for index in indices:
            scores[index] = (await _chain(client, version, texts[index])).score
            done += 1
            screen.moving(_progress(version, done, len(texts), time.monotonic() - began))

    indices = work()
    async with asyncio.TaskGroup() as tasks:
        for number in range(IN_FLIGHT):
            tasks.create_task(worker(indices), name=f"posts-{number}")
    return scores, done / (time.monotonic() - began)


def _progress(version: str, done: int, count: int, elapsed_s: float) -> str:
    speed = done / max(elapsed_s, 1e-3)
    if done >= count:
        return f"{version}: {count:,} posts done; measuring the speed, {speed:,.0f} a second"
    left_s = (count - done) / speed
    return f"{version}: {done:,} of {count:,} posts, {speed:,.0f} a second, {left_s:,.0f} s left"


async def _instances(connection: Connection) -> list[platform.InstanceRow]:
    return (await ask(connection, "launcher", "ps", "", platform.Ps(), platform.InstanceRows)).instances


async def _stop_all(connection: Connection) -> None:
    """Retire every instance, so that the next chain starts cold throughout."""
    async with asyncio.timeout(_GONE_WITHIN_S):
        while running := await _instances(connection):
            for algorithm in {row.algorithm for row in running}:
                await ask(connection, "launcher", "stop", algorithm, platform.Stop(), platform.Done)
