"""Allow-lists: what follows from scopes and grants, and that nothing else does.

The server's own reading of them is tried in tests/integration/test_identity.py.
"""

import pytest

from algomesh_broker import permissions, subjects
from algomesh_broker.errors import BadName
from algomesh_broker.names import VersionId
from algomesh_broker.permissions import CallRights, Pattern, Scope, may_call, of_instance, of_key, of_program

CLEAN = VersionId.parse("text/clean/1.0.0")
KEY = "abc1234567"
ME = f"k~{KEY}"


def fits(pattern: str, subject: str) -> bool:
    """Whether NATS would find `subject` allowed by `pattern`."""
    wanted, given = pattern.split(" ", maxsplit=1)[0].split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(given) > index
        if index >= len(given) or token not in ("*", given[index]):
            return False
    return len(wanted) == len(given)


def may_publish(allowed: permissions.Permissions, subject: str) -> bool:
    return any(fits(pattern, subject) for pattern in allowed.publish)


@pytest.mark.parametrize("text", ["call:text/*", "call:text/clean", "publish:*", "observe", "admin"])
def test_a_scope_reads_and_writes_the_same(text: str) -> None:
    assert str(Scope.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "call", "call:", "call:*/*", "call:*/clean", "call:text", "call:text/clean/1.0.0", "call:text/>", "observe:x",
     "call:te.xt/*", "call:text/cl ean", "root", "admin:*", "call:text/*\x00"],
)  # fmt: skip
def test_what_is_no_scope_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(BadName, match="a pattern is owner/name, owner/\\* or \\*"):
        Scope.parse(text)


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        ("*", "*", True),
        ("*", "text/*", True),
        ("text/*", "text/clean", True),
        ("text/*", "text/*", True),
        ("text/clean", "text/clean", True),
        ("text/clean", "text/*", False),
        ("text/*", "*", False),
        ("text/*", "bank/secret", False),
    ],
)
def test_patterns_cover_what_they_mean(wide: str, narrow: str, covers: bool) -> None:
    assert Pattern.parse(wide).covers(Pattern.parse(narrow)) is covers


def test_who_may_let_an_algorithm_call_what() -> None:
    assert may_call(["call:text/*", "publish:me/*"], "text/clean")
    assert may_call(["admin"], "*")
    assert not may_call(["publish:text/*", "observe"], "text/clean")
    assert not may_call(["call:text/clean"], "text/*")


def test_a_key_calls_parks_and_asks_for_what_its_scopes_cover() -> None:
    allowed = of_key(KEY, ["call:text/*"])

    for lane in ("call", "park.call", "demand"):
        assert may_publish(allowed, f"{lane}.text.clean.1-0-0.{ME}")
        assert not may_publish(allowed, f"{lane}.text.clean.1-0-0.k~other")
        assert not may_publish(allowed, f"{lane}.bank.secret.1-0-0.{ME}")


@pytest.mark.parametrize(
    ("scopes", "allowed", "refused"),
    [
        (["call:*"], [], ["registry.publish.a.b", "launcher.ps._._", "ledger.runs._._", "registry.key-list._._"]),
        (
            ["publish:me/*"],
            ["registry.upload.me.b", "registry.publish.me.b", "launcher.stop.me.b", "launcher.logs.me.b"],
            ["registry.publish.you.b", "launcher.stop.you.b", "launcher.ps._._", "registry.archive.me.b"],
        ),
        (
            ["observe"],
            ["launcher.ps._._", "launcher.logs.you.b", "ledger.runs._._", "registry.manifest.you.b"],
            ["launcher.stop.you.b", "registry.publish.you.b", "registry.key-list._._"],
        ),
        (
            ["admin"],
            ["registry.key-create._._", "registry.publish.a.b", "launcher.ps._._", "ledger.runs._._"],
            ["registry.archive._._"],
        ),
    ],
)
def test_programs_are_asked_by_scope(scopes: list[str], allowed: list[str], refused: list[str]) -> None:
    held = of_key(KEY, scopes)

    assert [request for request in allowed if not may_publish(held, f"platform.{request}.{ME}")] == []
    assert [request for request in refused if may_publish(held, f"platform.{request}.{ME}")] == []
    assert [request for request in allowed if may_publish(held, f"platform.{request}.k~other")] == []


def test_an_administrator_is_refused_what_only_instances_and_programs_do() -> None:
    held = of_key(KEY, ["admin"])

    for subject in (f"hop.a.b.1-0-0.{ME}", f"reply.a.b.{ME}.s.c", "event.run.a.b.1-0-0", "fleet.a.b.1-0-0"):
        assert not may_publish(held, subject)


def test_an_instance_takes_calls_only_in_the_queue_group() -> None:
    subscribed = of_instance(CLEAN, "host-1", []).subscribe

    taking = [pattern for pattern in subscribed if pattern.startswith(("call.", "hop."))]
    assert taking == ["call.text.clean.1-0-0.* workers", "hop.text.clean.1-0-0.* workers"]


def test_an_instance_calls_what_was_granted_as_itself() -> None:
    held = of_instance(CLEAN, "host-1", ["text/lower", "demo/*"])

    assert may_publish(held, "call.text.lower.2-0-0.text~clean")
    assert may_publish(held, "call.demo.echo.1-0-0.text~clean")
    assert not may_publish(held, "call.bank.secret.1-0-0.text~clean")
    assert not may_publish(held, "call.text.lower.2-0-0.k~other")
    assert not may_publish(of_instance(CLEAN, "host-1", []), "call.text.lower.2-0-0.text~clean")


def test_who_may_call_anything_may_ask_for_routes_in_its_own_name() -> None:
    mine, others = f"platform.registry.route._._.{ME}", "platform.registry.route._._.k~other"

    for scope, may in (("call:text/clean", True), ("admin", True), ("publish:me/*", False), ("observe", False)):
        assert may_publish(of_key(KEY, [scope]), mine) is may, scope
        assert not may_publish(of_key(KEY, [scope]), others)
    held = of_instance(CLEAN, "host-1", [])
    assert may_publish(held, "platform.registry.route._._.text~clean")
    assert not may_publish(held, mine)


def test_an_instance_hands_over_to_whatever_comes_next_as_itself() -> None:
    held = of_instance(CLEAN, "host-1", [])

    for lane in ("hop", "park.hop", "demand"):
        assert may_publish(held, f"{lane}.bank.secret.1-0-0.text~clean")
        assert not may_publish(held, f"{lane}.bank.secret.1-0-0.k~other")
    assert any(fits(pattern, "fleet.bank.secret.1-0-0") for pattern in held.subscribe)


@pytest.mark.parametrize(
    ("scopes", "covered", "others"),
    [
        (["admin"], ["text/clean", "bank/secret"], []),
        (["call:*"], ["text/clean", "bank/secret"], []),
        (["call:text/*", "publish:bank/*"], ["text/clean", "text/lower"], ["bank/secret"]),
        (["call:text/clean", "observe"], ["text/clean"], ["text/lower", "bank/secret"]),
        ([], [], ["text/clean"]),
    ],
)
def test_call_rights_are_those_of_the_scopes(scopes: list[str], covered: list[str], others: list[str]) -> None:
    rights = CallRights.of_scopes(scopes)

    assert [name for name in covered if not rights.covers(*name.split("/"))] == []
    assert [name for name in others if rights.covers(*name.split("/"))] == []


def test_an_instance_parks_for_others_only_calls_of_its_own_version() -> None:
    held = of_instance(CLEAN, "host-1", ["text/lower"])

    assert may_publish(held, "park.call.text.clean.1-0-0.k~other")
    assert not may_publish(held, "park.call.text.clean.2-0-0.k~other")
    assert not may_publish(held, "park.call.text.lower.1-0-0.k~other")


@pytest.mark.parametrize("instance", ["registry", "host-1.>", "host-*", "", "HOST-1", "k~abc"])
def test_what_is_no_instance_gets_no_permissions(instance: str) -> None:
    with pytest.raises(BadName):
        of_instance(CLEAN, instance, [])


def test_nobody_in_the_mesh_may_administer_jetstream_or_write_the_directory() -> None:
    everybody = [
        of_key(KEY, ["admin"]),
        of_instance(CLEAN, "host-1", ["*"]),
        *(of_program(program) for program in ("registry", "launcher", "ledger", "gateway")),
    ]
    forbidden = (
        "$JS.API.STREAM.DELETE.parked",
        "$JS.API.CONSUMER.DELETE.parked.x",
        "$KV.directory.a.b",
        "$JS.API.INFO",
    )

    for allowed in everybody:
        assert [subject for subject in forbidden if may_publish(allowed, subject)] == []


def test_each_keeper_of_a_stream_may_touch_only_its_own() -> None:
    streams = {"registry": "KV_directory", "launcher": "parked", "ledger": "events"}

    for program, own in streams.items():
        allowed = permissions.in_store(program)
        touched = {stream for stream in streams.values() if may_publish(allowed, f"$JS.API.STREAM.UPDATE.{stream}")}
        assert touched == {own}
    with pytest.raises(KeyError):
        permissions.in_store("gateway")


@pytest.mark.parametrize("subject", [subjects.ALL_EVENTS, subjects.ALL_PARKED, "call.>", "hop.>", "reply.>", ">"])
def test_no_allow_list_holds_a_whole_lane(subject: str) -> None:
    lists = [of_key(KEY, ["admin"]), of_instance(CLEAN, "h-1", ["*"]), of_program("launcher"), of_program("registry")]

    assert not any(subject in (*allowed.publish, *allowed.subscribe) for allowed in lists)
