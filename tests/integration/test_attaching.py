"""Instances that users run outside: who gets a token, for what, for how long; and versions that are not Python."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

import algomesh
from algomesh.adapter import attached
from algomesh.foreign import describe_foreign
from algomesh_broker import codec, credentials, platform, subjects
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import Forbidden, Unauthenticated
from algomesh_broker.identity import Identity, key_id, sign_instance_token, verify_instance_token
from algomesh_broker.names import VersionId
from algomesh_services.registry import attaching
from tests.conditions import until
from tests.integration.registry_fixtures import ADMIN_KEY, Mesh, Refused, ask, eventually, publish, running_mesh, upload

pytestmark = pytest.mark.integration

WORDS = VersionId.parse("me/words/1.0.0")
OUTSIDE = platform.Manifest(owner="me", name="words", version="1.0.0", entry="", is_outside=True)


@pytest_asyncio.fixture
async def mesh(tmp_path: Path, postgres: str) -> AsyncIterator[Mesh]:
    async with running_mesh(tmp_path, postgres) as mesh:
        yield mesh


@pytest_asyncio.fixture
async def admin(mesh: Mesh) -> Connection:
    return await mesh.admin()


async def publish_manifest(connection: Connection, manifest: platform.Manifest, digest: str = "0" * 64) -> None:
    wanted = platform.Publish(manifest=manifest, digest=digest)
    await ask(connection, "publish", wanted, platform.Published, algorithm=f"{manifest.owner}/{manifest.name}")


async def attach(connection: Connection, version: VersionId = WORDS, token: str = "") -> platform.Attached:
    wanted = platform.Attach(version=str(version.version), token=token)
    return await ask(connection, "attach", wanted, platform.Attached, algorithm=version.algorithm)


async def test_who_may_publish_gets_a_token_that_connects(mesh: Mesh, admin: Connection) -> None:
    await publish_manifest(admin, replace(OUTSIDE, options=platform.Options(concurrency=4)))
    key = await mesh.key("publish:me/*")

    given = await attach(await mesh.connect(Identity.of_key(key)))

    assert given.options.concurrency == 4
    assert given.route_key == credentials.read_route_key(mesh.secrets)
    claims = verify_instance_token(given.token, [given.route_key], given.expires - 10)
    assert (claims.version_id, claims.instance, claims.by) == (WORDS, given.instance, f"k~{key_id(key)}")
    own = await mesh.connect(Identity.of_instance(given.token, WORDS, given.instance))
    await own.subscribe("call.me.words.1-0-0.*", lambda _: None, "workers")
    with pytest.raises(Forbidden):
        await own.subscribe("call.text.clean.1-0-0.*", lambda _: None, "workers")


async def test_each_attach_is_another_instance(admin: Connection) -> None:
    await publish_manifest(admin, OUTSIDE)

    assert (await attach(admin)).instance != (await attach(admin)).instance


async def test_with_its_token_an_instance_goes_on_under_its_name(mesh: Mesh, admin: Connection) -> None:
    await publish_manifest(admin, OUTSIDE)
    first = await attach(admin)

    second = await attach(admin, token=first.token)

    assert second.instance == first.instance
    assert second.expires >= first.expires


async def test_a_token_that_is_over_connects_nobody_and_can_still_be_renewed(
    mesh: Mesh, admin: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish_manifest(admin, OUTSIDE)
    monkeypatch.setattr(attaching, "LIFETIME_S", -1.0)
    over = await attach(admin)
    monkeypatch.undo()

    with pytest.raises(Unauthenticated):
        await mesh.connect(Identity.of_instance(over.token, WORDS, over.instance))
    renewed = await attach(admin, token=over.token)

    assert renewed.instance == over.instance
    await mesh.connect(Identity.of_instance(renewed.token, WORDS, renewed.instance))


async def test_a_key_that_may_not_publish_may_not_attach(mesh: Mesh, admin: Connection) -> None:
    await publish_manifest(admin, OUTSIDE)
    caller = await mesh.connect(Identity.of_key(await mesh.key("call:*", "publish:text/*")))

    with pytest.raises(Forbidden):
        await attach(caller)


async def test_the_token_of_another_is_no_way_in(mesh: Mesh, admin: Connection) -> None:
    await publish_manifest(admin, OUTSIDE)
    await publish_manifest(admin, replace(OUTSIDE, name="others"))
    mine, other = await attach(admin), await mesh.connect(Identity.of_key(await mesh.key("publish:me/*")))
    launched = sign_instance_token(WORDS, "host-1", credentials.read_seed(mesh.secrets, "launcher"))

    for token in (mine.token, launched, "ai_x.y", "am_key"):
        with pytest.raises(Refused) as refused:
            await attach(other, token=token)
        assert refused.value.code == "permission_denied"
    with pytest.raises(Refused):
        await attach(admin, VersionId.parse("me/others/1.0.0"), token=mine.token)


async def test_what_was_never_published_cannot_be_attached_to(admin: Connection) -> None:
    with pytest.raises(Refused) as refused:
        await attach(admin)

    assert refused.value.code == "unknown_version"


async def test_a_revoked_key_takes_its_instances_with_it(mesh: Mesh, admin: Connection) -> None:
    await publish_manifest(admin, OUTSIDE)
    key = await mesh.key("publish:me/*")
    given = await attach(await mesh.connect(Identity.of_key(key)))
    identity = Identity.of_instance(given.token, WORDS, given.instance)
    own = await mesh.connect(identity)

    await ask(admin, "key-revoke", platform.KeyRevoke(key=key_id(key)), platform.Done)

    async def is_cut_off() -> bool:
        return not own.is_connected

    await eventually(is_cut_off)
    with pytest.raises(Unauthenticated):
        await mesh.connect(identity)


async def test_an_instance_outlives_its_tokens_and_a_restart_of_the_server(
    mesh: Mesh, admin: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attaching, "LIFETIME_S", 3.0)
    launcher, tokens = await mesh.program("launcher"), dict[str, str]()

    def hear(message: Message) -> None:
        lease = codec.decode_lease(message.data)
        tokens[lease.token] = lease.phase

    await launcher.subscribe(subjects.ALL_LEASES, hear)
    stop, ready = asyncio.Event(), asyncio.Event()
    manifest = describe_foreign(name="me/words", version="1.0.0", options={}, command=[])
    serving = asyncio.create_task(
        attached.serve(admin, mesh.url, manifest, shout, stop, on_ready=lambda *_: ready.set())
    )
    await asyncio.wait({serving, asyncio.create_task(ready.wait())}, return_when=asyncio.FIRST_COMPLETED)

    async with algomesh.connect(ADMIN_KEY, mesh.url) as client:
        first = await client.algo("me/words").pipe("one")
        await until(lambda: len(tokens) >= 4, 30)
        await mesh.server.kill()
        tokens.clear()
        await mesh.server.start()
        await until(lambda: tokens, 30)  # it is back: without a launcher nobody would unpark a call that came before
        second = await client.algo("me/words").pipe("two", timeout=30)

    stop.set()
    await serving
    assert (first.result, second.result) == ("ONE", "TWO")
    assert second.metadata.instance == first.metadata.instance


async def shout(value: Any) -> Any:
    return value.upper()


async def test_a_version_with_a_command_is_published_with_its_archive(admin: Connection) -> None:
    manifest = replace(OUTSIDE, is_outside=False, command=["node", "words.js"], image="node:22-slim")
    digest = await upload(admin, "me/words", b"archive")

    await publish_manifest(admin, manifest, digest)
    stored = await ask(
        admin, "manifest", platform.FetchManifest(version="1.0.0"), platform.StoredManifest, algorithm="me/words"
    )

    assert stored.manifest == manifest
    with pytest.raises(Refused) as refused:
        await publish_manifest(admin, replace(manifest, version="1.0.1"))
    assert refused.value.code == "archive_missing"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"command": ["node"], "entry": "m:f"}, "a command or an entry, not both"),
        ({"command": [""]}, "the program and its arguments"),
        ({"command": ["a\0b"]}, "the program and its arguments"),
        ({"command": ["x"] * 1000}, "at most"),
        ({"command": ["x" * 100_000]}, "at most"),
        ({"command": ["node"], "image": "no image"}, "as docker does"),
        ({"command": ["node"], "requirements": ["numpy"]}, "only a version in Python"),
        ({"command": ["node"], "options": platform.Options(batch_max=4)}, "only a version in Python"),
        ({"command": ["node"], "options": platform.Options(cache_s=4)}, "only a version in Python"),
        ({"options": platform.Options(min_instances=1)}, "leave out min_instances"),
        ({"image": "node:22"}, "leave out min_instances and image"),
        ({"command": ["node"], "is_outside": True}, "runs outside has none"),
    ],
)
async def test_a_command_that_cannot_be_is_refused(admin: Connection, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said) as refused:
        await publish_manifest(admin, replace(OUTSIDE, **{"is_outside": "command" not in fields} | fields))

    assert refused.value.code == "bad_manifest"


async def test_other_content_under_the_same_version_is_refused(admin: Connection) -> None:
    await publish_manifest(admin, OUTSIDE)
    await publish_manifest(admin, OUTSIDE)

    with pytest.raises(Refused) as refused:
        await publish_manifest(admin, replace(OUTSIDE, description="other"))

    assert refused.value.code == "version_exists"


async def test_a_python_version_may_be_attached_to_as_well(admin: Connection) -> None:
    await publish(admin, "me/words/1.0.0")

    assert (await attach(admin)).instance.startswith("x")
