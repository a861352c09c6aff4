"""Kept results without a server: what names an input, who may write and ask, who waits for whom."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

import algomesh
from algomesh.content import Content, encode
from algomesh.instance import coalescing
from algomesh.instance.coalescing import Coalescing
from algomesh.instance.job import Job
from algomesh.result_cache import Answered, ResultCache, digest_of, is_kept
from algomesh_broker import authorization, credentials, messages, permissions, subjects
from algomesh_broker.identity import Identity
from algomesh_broker.names import VersionId
from algomesh_broker.route import AllStep, CallStep, Route

CLEAN = VersionId.parse("text/clean/1.0.0")
DIGEST = "0" * 48


class NoConnection:
    """What a cache has of a connection when nothing is asked over it."""

    identity = Identity("k~me", "_INBOX.me")


@pytest.fixture
async def results() -> ResultCache:
    return ResultCache(NoConnection())  # type: ignore[arg-type]


def soon() -> float:
    return asyncio.get_running_loop().time() + 5


# Inputs


def test_a_digest_tells_values_and_types_apart() -> None:
    contents = [
        encode("1"), encode(1), encode(b"1"), encode("11"), Content("text", "1", b""), Content("tensor", "a", b"bc"),
        Content("tensor", "ab", b"c"),
    ]  # fmt: skip

    assert len({digest_of(content) for content in contents}) == len(contents)
    assert digest_of(encode("1")) == digest_of(Content("text", "", memoryview(b"1")))
    assert re.fullmatch("[0-9a-f]{48}", digest_of(encode("1")))


def test_what_is_claimed_or_large_has_no_digest() -> None:
    assert digest_of(Content("claim", "", b"x")) == ""
    assert digest_of(encode(b"x" * 600_000)) == ""


# The option


def test_the_option_is_a_duration() -> None:
    @algomesh.algorithm("t/pure", version="1.0.0", cache="10m")
    def pure(text: str) -> str:
        return text

    assert pure.options.cache_s == 600.0
    for wrong in ("soon", 0, -1, "1y"):
        with pytest.raises(ValueError, match="cache="):
            algomesh.algorithm("t/pure", version="1.0.0", cache=wrong)


def test_what_yields_is_not_kept() -> None:
    def counts(n: int) -> Any:
        yield n

    with pytest.raises(TypeError, match="keeps whole results"):
        algomesh.algorithm("t/counts-kept", version="1.0.0", cache=60)(counts)


def test_only_calls_of_whole_values_may_be_in_the_cache() -> None:
    assert is_kept(CallStep("a/b/1.0.0", cache_s=1.0))
    assert not is_kept(CallStep("a/b/1.0.0"))
    assert not is_kept(CallStep("a/b/1.0.0", cache_s=0.0))
    assert not is_kept(CallStep("a/b/1.0.0", cache_s=1.0, takes_parts=True))
    assert not is_kept(AllStep([1]))


# Who may


def test_callers_ask_for_results_of_what_they_may_call_and_instances_write_their_own_versions() -> None:
    ask = "$JS.API.DIRECT.GET.cache.cache"

    def about(allowed: permissions.Permissions) -> list[str]:
        return [subject for subject in allowed.publish + allowed.subscribe if "cache" in subject]

    assert about(permissions.of_key("abc1234567", [])) == []
    assert about(permissions.of_key("abc1234567", ["call:text/*"])) == [f"{ask}.*.text.*.*.*.result"]
    assert about(permissions.of_key("abc1234567", ["call:text/clean"])) == [f"{ask}.*.text.clean.*.*.result"]
    own = about(permissions.of_instance(CLEAN, "host-1", []))
    assert own == [subjects.results_of(CLEAN), subjects.READ_RESULT]
    assert own[0] == f"cache.*.{CLEAN.tokens}.*.result"


def test_only_the_launcher_keeps_the_stream() -> None:
    for program in ("registry", "launcher", "ledger"):
        allowed = [subject for subject in permissions.in_store(program).publish if subject.endswith(".cache")]
        assert bool(allowed) == (program == "launcher")
        assert not [subject for subject in allowed if "DELETE" in subject or "CONSUMER" in subject]


def test_the_servers_mark_is_made_of_everything_that_names_a_result(tmp_path: Path) -> None:
    credentials.ensure_secrets(tmp_path)
    text = authorization.authorization_config(tmp_path)
    accounts = json.loads(text.removeprefix("accounts: ").partition("\nsystem_account")[0])
    mappings = accounts["MESH"]["mappings"]

    for subject in (subjects.ALL_RESULTS, subjects.READ_RESULT):
        before, _, after = mappings[subject].partition("cache.{{partition(2147483647,2,3,4,5)}}.")
        assert subject.startswith(f"{before}cache.*.")
        assert re.findall(r"\d+", after) == ["2", "3", "4", "5"]
        assert after.endswith(".result")


def test_a_step_that_is_kept_may_be_left_out_by_who_would_have_handed_over_to_it() -> None:
    # z | a | (b | c) & d | e, where a and b are kept
    route = Route([
        CallStep("t/z/1.0.0", 1), CallStep("t/a/1.0.0", 2, cache_s=9.0), AllStep([3, 5], 6),
        CallStep("t/b/1.0.0", 4, cache_s=9.0), CallStep("t/c/1.0.0"), CallStep("t/d/1.0.0"), CallStep("t/e/1.0.0"),
    ])  # fmt: skip

    def actors(step: int) -> set[str]:
        everybody = [f"t~{name}" for name in "zabcde"]
        assert route.may_act(step, "k~me", "k~me")  # every step is the sender's to call
        return {caller for caller in everybody if route.may_act(step, caller, "k~me")}

    forwarders = {at: actors(place.forwarder) for at, place in route.places.items()}
    assert forwarders == {
        0: set(), 1: {"t~z"}, 3: {"t~a", "t~z"}, 4: {"t~b", "t~a", "t~z"}, 5: {"t~a", "t~z"}, 6: {"t~a", "t~z"},
    }  # fmt: skip
    assert {at: actors(place.joiner) for at, place in route.places.items()} == {
        0: set(), 1: set(), 3: {"t~a", "t~z"}, 4: {"t~a", "t~z"}, 5: {"t~a", "t~z"}, 6: set(),
    }  # fmt: skip


# In flight, one process


async def test_what_is_under_way_is_waited_for(results: ResultCache) -> None:
    gate, begun = asyncio.Event(), []

    async def run() -> Answered:
        begun.append(1)
        await gate.wait()
        return Answered(encode("a"), cached=False)

    calls = [asyncio.create_task(results.once("key", soon(), run)) for _ in range(3)]
    other = asyncio.create_task(results.once("other", soon(), run))
    await asyncio.sleep(0)
    gate.set()

    assert [answered.cached for answered in await asyncio.gather(*calls)] == [False, True, True]
    assert not (await other).cached
    assert len(begun) == 2


async def test_when_the_first_is_cancelled_the_next_one_runs(results: ResultCache) -> None:
    gate, begun = asyncio.Event(), []

    async def run() -> Answered:
        begun.append(1)
        await gate.wait()
        return Answered(encode("a"), cached=False)

    calls = [asyncio.create_task(results.once("key", soon(), run)) for _ in range(4)]
    await asyncio.sleep(0)
    calls[0].cancel()
    calls[2].cancel()
    await asyncio.wait([calls[0], calls[2]])
    gate.set()

    assert (await calls[1]).cached is False
    assert (await calls[3]).cached is True
    assert [calls[0].cancelled(), calls[2].cancelled()] == [True, True]
    assert len(begun) == 2


async def test_when_the_first_fails_the_others_run_by_themselves(results: ResultCache) -> None:
    outcomes = [ValueError("no"), None, None]

    async def run() -> Answered:
        outcome = outcomes.pop(0)
        await asyncio.sleep(0)
        if outcome is not None:
            raise outcome
        return Answered(encode("a"), cached=False)

    calls = [asyncio.create_task(results.once("key", soon(), run)) for _ in range(3)]
    first, *others = await asyncio.gather(*calls, return_exceptions=True)

    assert isinstance(first, ValueError)
    assert [other.cached for other in others] == [False, False]  # type: ignore[union-attr]


async def test_an_output_in_a_claim_is_not_shared(results: ResultCache) -> None:
    async def run() -> Answered:
        await asyncio.sleep(0)
        return Answered(Content("claim", "", b"x"), cached=False)

    calls = [asyncio.create_task(results.once("key", soon(), run)) for _ in range(2)]

    assert [answered.cached for answered in await asyncio.gather(*calls)] == [False, False]


# In flight, one instance


def job(run: str, text: str = "a", depth: int = 0) -> Job:
    payload = memoryview(text.encode())
    call = messages.Call(
        run=run, root=run, root_caller="k~a", session="s", call="c", time_left_ms=1000, depth=depth,
        content_type="text", payload=payload,
    )  # fmt: skip
    return Job.of(call, "call.t.a.1_0_0.k~a", "k~a", 0.0)


def test_the_same_joins_what_runs_and_ends_with_it() -> None:
    same, first, second = Coalescing(60.0), job("1"), job("2")

    assert [same.joins(each) for each in (first, second, job("3", "b"))] == [False, True, False]
    assert same.end(second) is None
    ended = same.end(first)

    assert ended is not None
    assert (ended.waiting, ended.cache_s) == ([second], 60.0)
    assert same.end(first) is None
    assert not same.joins(job("4"))


def test_a_run_never_waits_for_one_that_may_have_called_it() -> None:
    same = Coalescing(60.0)

    assert not same.joins(job("1", depth=0))
    assert not same.joins(job("2", depth=1))


def test_who_leaves_is_not_answered() -> None:
    same, first, second = Coalescing(60.0), job("1"), job("2")
    same.joins(first)
    same.joins(second)

    assert same.leaves(second)
    assert not same.leaves(second)
    assert not same.leaves(first)
    ended = same.end(first)
    assert ended is not None
    assert ended.waiting == []


def test_only_so_many_wait_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalescing, "_MOST_WAITING", 2)
    same, first = Coalescing(60.0), job("0")

    assert [same.joins(each) for each in (first, job("1"), job("2"), job("3"))] == [False, True, True, False]
    assert same.end(job("3")) is None
    ended = same.end(first)
    assert ended is not None
    assert len(ended.waiting) == 2


def test_nothing_joins_where_nothing_is_kept() -> None:
    same = Coalescing(0.0)

    assert not same.joins(job("1"))
    assert not same.joins(job("2"))
