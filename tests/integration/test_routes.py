"""Route tokens from a registry: who gets one for which route."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from algomesh_broker import credentials, platform
from algomesh_broker.connection import Connection
from algomesh_broker.errors import Forbidden
from algomesh_broker.grants import LIFETIME_S, GrantBook
from algomesh_broker.identity import Identity, sign_instance_token
from algomesh_broker.names import VersionId
from algomesh_broker.route import END, CallStep, Route
from tests.integration.registry_fixtures import Mesh, Refused, ask, publish, running_mesh

pytestmark = pytest.mark.integration

CLEAN, LOWER, SECRET = "text/clean/1.0.0", "text/lower/1.0.0", "bank/secret/1.0.0"


@pytest_asyncio.fixture
async def mesh(tmp_path: Path, postgres: str) -> AsyncIterator[Mesh]:
    """A registry and three algorithms; text/clean may call text/lower."""
    async with running_mesh(tmp_path, postgres) as mesh:
        admin = await mesh.admin()
        await publish(admin, LOWER)
        await publish(admin, SECRET)
        await publish(admin, CLEAN, calls=["text/lower"])
        yield mesh


@pytest_asyncio.fixture
async def caller(mesh: Mesh) -> Connection:
    return await mesh.connect(Identity.of_key(await mesh.key("call:text/*")))


def chain(*versions: str) -> Route:
    last = len(versions) - 1
    return Route([CallStep(version, at + 1 if at < last else END) for at, version in enumerate(versions)])


async def route_of(connection: Connection, data: bytes, token: str = "", **fields: float) -> platform.RouteGrant:
    wanted = platform.RouteAsk(route=data, token=token, **fields)
    return await ask(connection, "route", wanted, platform.RouteGrant)


def book_of(mesh: Mesh) -> GrantBook:
    return GrantBook(credentials.read_route_key(mesh.secrets))


async def test_a_key_gets_a_token_for_what_it_may_call(mesh: Mesh, caller: Connection) -> None:
    route = chain(CLEAN, LOWER, CLEAN)

    answer = await route_of(caller, route.data)

    granted = book_of(mesh).check(answer.grant, time.time())
    assert (granted.sender, granted.route.data) == (caller.identity.caller, route.data)
    assert granted.expires == answer.expires == pytest.approx(time.time() + LIFETIME_S, abs=60)


async def test_a_token_lives_as_long_as_its_runs(caller: Connection) -> None:
    answer = await route_of(caller, chain(CLEAN).data, lifetime_s=7_200.0)

    assert answer.expires == pytest.approx(time.time() + 7_200, abs=60)


async def test_a_stage_that_the_key_may_not_call_is_named(caller: Connection) -> None:
    with pytest.raises(Refused, match="may not call bank/secret") as refused:
        await route_of(caller, chain(CLEAN, SECRET).data)

    assert refused.value.code == "permission_denied"


@pytest.mark.parametrize("version", ["text/clean/9.0.0", "text/nothing/1.0.0"])
async def test_a_stage_that_was_never_published_is_named(caller: Connection, version: str) -> None:
    with pytest.raises(Refused, match=f"{version} was never published") as refused:
        await route_of(caller, chain(CLEAN, version).data)

    assert refused.value.code == "unknown_version"


async def test_what_is_no_route_is_refused(caller: Connection) -> None:
    with pytest.raises(Refused) as refused:
        await route_of(caller, b"no route")

    assert refused.value.code == "bad_message"


async def test_a_key_that_may_call_nothing_may_not_even_ask(mesh: Mesh) -> None:
    observer = await mesh.connect(Identity.of_key(await mesh.key("observe")))

    with pytest.raises(Forbidden):
        await route_of(observer, chain(CLEAN).data)


async def test_a_revoked_key_gets_no_token_any_more(mesh: Mesh) -> None:
    key = await mesh.key("call:*", name="short lived")
    caller = await mesh.connect(Identity.of_key(key))
    await route_of(caller, chain(CLEAN).data)

    await ask(await mesh.admin(), "key-revoke", platform.KeyRevoke(key="short lived"), platform.Done)

    with pytest.raises((Refused, Forbidden, TimeoutError)):
        await route_of(caller, chain(CLEAN).data)


async def test_an_administrator_may_call_every_stage(mesh: Mesh) -> None:
    await route_of(await mesh.admin(), chain(CLEAN, SECRET).data)


class TestAnInstance:
    @staticmethod
    def token(mesh: Mesh, version: str, instance: str = "host-1", program: str = "launcher") -> str:
        return sign_instance_token(VersionId.parse(version), instance, credentials.read_seed(mesh.secrets, program))

    async def test_gets_a_token_for_what_its_version_was_granted(self, mesh: Mesh) -> None:
        instance = await mesh.instance(CLEAN)

        answer = await route_of(instance, chain(LOWER, LOWER).data, self.token(mesh, CLEAN))

        assert book_of(mesh).check(answer.grant, time.time()).sender == "text~clean"

    async def test_gets_none_for_anything_else(self, mesh: Mesh) -> None:
        instance = await mesh.instance(CLEAN)

        with pytest.raises(Refused, match="text/clean as it was published may not call bank/secret") as refused:
            await route_of(instance, chain(LOWER, SECRET).data, self.token(mesh, CLEAN))

        assert refused.value.code == "permission_denied"

    @pytest.mark.parametrize("kind", ["none", "forged", "another's"])
    async def test_must_show_its_own_token(self, mesh: Mesh, kind: str) -> None:
        instance = await mesh.instance(CLEAN)
        token = {
            "none": "",
            "forged": self.token(mesh, CLEAN, program="gateway"),
            "another's": self.token(mesh, SECRET),
        }[kind]

        with pytest.raises(Refused) as refused:
            await route_of(instance, chain(LOWER).data, token)

        assert refused.value.code in ("unauthenticated", "permission_denied")


async def test_a_route_of_four_thousand_steps_is_signed(mesh: Mesh, caller: Connection) -> None:
    route = chain(*[CLEAN, LOWER] * 2_000)
    answer = await route_of(caller, route.data)

    took_s = []
    for _ in range(5):
        began = time.perf_counter()
        answer = await route_of(caller, route.data)
        took_s.append(time.perf_counter() - began)

    print(f"4,000 steps: {min(took_s) * 1e3:.1f} ms from asking to having the token")
    assert len(book_of(mesh).check(answer.grant, time.time()).route.places) == 4_000
