"""Named pipelines at the registry: which may be published, and what the others are told."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

import algomesh
from algomesh.pipeline import Pipeline, stage
from algomesh_broker import platform
from algomesh_broker.connection import Connection
from algomesh_broker.directory import Directory
from algomesh_broker.errors import Unauthenticated
from algomesh_broker.identity import Identity
from algomesh_broker.names import Reference, VersionId
from algomesh_broker.platform import AliasSet, Done
from algomesh_broker.route import CallStep, Route
from tests.conditions import until
from tests.integration.registry_fixtures import Mesh, Refused, ask, publish, running_mesh

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def mesh(tmp_path: Path, postgres: str) -> AsyncIterator[Mesh]:
    """A registry and three algorithms."""
    async with running_mesh(tmp_path, postgres) as mesh:
        admin = await mesh.admin()
        for name in ("text/clean", "text/sentiment", "bank/secret"):
            await publish(admin, f"{name}/1.0.0")
        yield mesh


@pytest_asyncio.fixture
async def admin(mesh: Mesh) -> Connection:
    return await mesh.admin()


async def publish_pipeline(
    connection: Connection, reference: str, pipeline: Pipeline | bytes, digest: str = "", **fields: Any
) -> platform.Published:
    version = VersionId.parse(reference)
    data = pipeline if isinstance(pipeline, bytes) else pipeline.to_json()
    manifest = platform.Manifest(
        owner=version.owner, name=version.name, version=str(version.version), entry="", pipeline=data
    )
    for field, value in fields.items():
        manifest = msgspec.structs.replace(manifest, **{field: value})
    wanted = platform.Publish(manifest=manifest, digest=digest or hashlib.sha256(data).hexdigest())
    return await ask(connection, "publish", wanted, platform.Published, algorithm=version.algorithm)


def chain(*references: str) -> Pipeline:
    made: Pipeline = stage(references[0])
    for reference in references[1:]:
        made = made | reference
    return made


async def test_a_pipeline_is_in_everybodys_directory(mesh: Mesh, admin: Connection) -> None:
    pipeline = stage("text/clean") | (stage("text/sentiment") & "text/clean/1.0.0")

    published = await publish_pipeline(admin, "text/judge/1.0.0", pipeline)

    async with await Directory.open(admin) as directory:
        await until(lambda: "text/judge" in [f"{entry.owner}/{entry.name}" for entry in directory.entries()])
        entry = directory.resolve(Reference.parse("text/judge")).entry
    assert published.created
    assert Pipeline.from_json(entry.pipeline) == pipeline
    assert entry.digest == published.digest == hashlib.sha256(pipeline.to_json()).hexdigest()


async def test_a_published_pipeline_never_changes(admin: Connection) -> None:
    await publish_pipeline(admin, "text/judge/1.0.0", chain("text/clean", "text/sentiment"))

    again = await publish_pipeline(admin, "text/judge/1.0.0", chain("text/clean", "text/sentiment"))
    with pytest.raises(Refused, match=r"version to 1\.0\.1") as refused:
        await publish_pipeline(admin, "text/judge/1.0.0", chain("text/clean"))

    assert not again.created
    assert refused.value.code == "version_exists"


async def test_a_name_may_be_an_algorithm_in_one_version_and_a_pipeline_in_the_next(admin: Connection) -> None:
    await publish_pipeline(admin, "text/clean/2.0.0", chain("text/clean/1.0.0", "text/sentiment"))


async def test_a_pipeline_may_be_a_stage_of_another(admin: Connection) -> None:
    await publish_pipeline(admin, "text/judge/1.0.0", chain("text/clean", "text/sentiment"))

    await publish_pipeline(admin, "text/report/1.0.0", chain("text/judge", "text/clean").each())


@pytest.mark.parametrize("missing", ["text/nothing", "text/clean/9.0.0", "text/clean/stable"])
async def test_a_stage_that_is_not_there_is_named(admin: Connection, missing: str) -> None:
    with pytest.raises(Refused, match="has a stage that is not there") as refused:
        await publish_pipeline(admin, "text/judge/1.0.0", chain("text/clean", missing))

    assert refused.value.code in ("unknown_algorithm", "unknown_version")
    assert missing.rpartition("/")[2] in refused.value.message


async def test_a_cycle_is_refused_and_named(admin: Connection) -> None:
    await publish_pipeline(admin, "p/b/1.0.0", chain("text/clean"))
    await publish_pipeline(admin, "p/a/1.0.0", chain("text/clean", "p/b"))

    with pytest.raises(Refused, match=r"p/b/2\.0\.0 → p/a/1\.0\.0 → p/b/2\.0\.0") as refused:
        await publish_pipeline(admin, "p/b/2.0.0", chain("p/a"))
    await publish_pipeline(admin, "p/b/2.0.0", chain("p/b/1.0.0"))

    assert refused.value.code == "bad_reference"


async def test_a_pipeline_is_no_stage_of_itself(admin: Connection) -> None:
    await publish(admin, "p/a/1.0.0")

    with pytest.raises(Refused, match=r"p/a/2\.0\.0 → p/a/2\.0\.0"):
        await publish_pipeline(admin, "p/a/2.0.0", chain("p/a"))
    await publish_pipeline(admin, "p/a/2.0.0", chain("p/a/1.0.0"))


async def test_an_alias_leads_into_no_cycle(admin: Connection) -> None:
    async def stable_is(version: str) -> None:
        await ask(admin, "alias-set", AliasSet(alias="stable", weights={version: 1}), Done, algorithm="p/b")

    await publish(admin, "p/b/1.0.0")
    await stable_is("1.0.0")
    await publish_pipeline(admin, "p/a/1.0.0", chain("p/b/stable"))
    await publish_pipeline(admin, "p/b/2.0.0", chain("p/a"))

    with pytest.raises(Refused, match="lead back to themselves") as refused:
        await stable_is("2.0.0")

    assert refused.value.code == "bad_reference"


async def test_who_publishes_may_call_every_stage_also_of_the_pipelines_within(mesh: Mesh, admin: Connection) -> None:
    author = await mesh.connect(Identity.of_key(await mesh.key("publish:me/*", "call:text/*", "call:me/*")))
    await publish_pipeline(admin, "text/vault/1.0.0", chain("text/clean", "bank/secret"))

    await publish_pipeline(author, "me/judge/1.0.0", chain("text/clean", "text/sentiment"))
    for stages in (chain("text/clean", "bank/secret"), chain("text/vault")):
        with pytest.raises(Refused, match="call:bank/secret") as refused:
            await publish_pipeline(author, "me/thief/1.0.0", stages)
        assert refused.value.code == "permission_denied"


@pytest.mark.parametrize(
    ("data", "fields", "code"),
    [
        (b"no json", {}, "bad_manifest"),
        (b'{"kind":"stage"}', {}, "bad_manifest"),
        (b'{"kind":"chain","stages":[]}', {}, "bad_manifest"),
        (b'{"kind":"stage","reference":"text/>"}', {}, "bad_manifest"),
        (b"[" * 100_000, {}, "bad_manifest"),
        (b" " * 600_000, {}, "bad_manifest"),
        (chain("text/clean").to_json(), {"entry": "os:system"}, "bad_manifest"),
        (chain("text/clean").to_json(), {"requirements": ["numpy"]}, "bad_manifest"),
        (chain("text/clean").to_json(), {"options": platform.Options(min_instances=1)}, "bad_manifest"),
        (chain("text/clean").to_json(), {"is_outside": True}, "bad_manifest"),
        (chain("text/clean").to_json(), {"digest": "0" * 64}, "digest_mismatch"),
        (b"", {}, "bad_manifest"),
    ],
)
async def test_what_is_no_pipeline_is_refused(
    admin: Connection, data: bytes, fields: dict[str, Any], code: str
) -> None:
    with pytest.raises(Refused) as refused:
        await publish_pipeline(admin, "text/judge/1.0.0", data, **fields)

    assert refused.value.code == code


async def test_a_thousand_stages_can_be_published(admin: Connection) -> None:
    await publish_pipeline(admin, "text/long/1.0.0", chain(*["text/clean"] * 1_000))


async def test_a_pipeline_has_no_place_in_a_route(admin: Connection) -> None:
    await publish_pipeline(admin, "text/judge/1.0.0", chain("text/clean"))

    wanted = platform.RouteAsk(route=Route([CallStep("text/judge/1.0.0")]).data)
    with pytest.raises(Refused, match="is a named pipeline"):
        await ask(admin, "route", wanted, platform.RouteGrant)


async def test_a_pipeline_has_no_instances(mesh: Mesh, admin: Connection) -> None:
    await publish_pipeline(admin, "text/judge/1.0.0", chain("text/clean"))

    with pytest.raises(Unauthenticated):
        await mesh.instance("text/judge/1.0.0")


async def test_a_name_in_python_is_what_the_registry_takes(admin: Connection) -> None:
    named = algomesh.named("text/judge", stage("text/clean") | "text/sentiment", version="1.0.0", description="Judges")
    manifest = named.manifest()

    wanted = platform.Publish(manifest=manifest, digest=hashlib.sha256(manifest.pipeline).hexdigest())
    await ask(admin, "publish", wanted, platform.Published, algorithm="text/judge")

    stored = await ask(
        admin, "manifest", platform.FetchManifest(version="1.0.0"), platform.StoredManifest, algorithm="text/judge"
    )
    assert stored.manifest == manifest
