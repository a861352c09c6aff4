"""What was learned survives a restart, and a damaged snapshot is refused as a whole."""

import random
from collections.abc import Callable

import msgspec
import pytest

from algomesh_services.prewarmer.policy import BreakEvenPolicy
from algomesh_services.prewarmer.snapshots import SCHEMA, Snapshot
from tests.unit.test_prewarmer_policy import Call, Fleet, chain, holds, trained


def question() -> Call:
    return Call("new", 0, -1, "t/a", "me", 50_000.0, 50_000.0)


@pytest.mark.parametrize("encode", [msgspec.msgpack.encode, msgspec.json.encode])
def test_a_restored_policy_answers_as_before(encode: Callable[[Snapshot], bytes]) -> None:
    policy, restored = trained(), BreakEvenPolicy(Fleet(), 5.0)

    restored.restore(encode(policy.snapshot()))

    assert restored.graph() == policy.graph()
    assert restored.called(question()) == policy.called(question())
    assert holds(restored.idle("t/c", 60_000.0)) == holds(policy.idle("t/c", 60_000.0))


def test_a_snapshot_of_a_snapshot_is_the_same() -> None:
    policy, restored = trained(times=40), BreakEvenPolicy(Fleet(), 5.0)

    restored.restore(policy.snapshot())

    assert msgspec.msgpack.encode(restored.snapshot()) == msgspec.msgpack.encode(policy.snapshot())


def test_what_is_learned_later_does_not_change_a_snapshot() -> None:
    policy = trained()
    snapshot = policy.snapshot()
    before = msgspec.msgpack.encode(snapshot)

    chain(policy, "more", 90_000.0)

    assert msgspec.msgpack.encode(snapshot) == before


def test_a_policy_that_learned_nothing_has_a_snapshot() -> None:
    restored = BreakEvenPolicy(Fleet(), 5.0)

    restored.restore(msgspec.msgpack.encode(BreakEvenPolicy(Fleet(), 5.0).snapshot()))

    assert restored.graph() == []


def damaged(change: Callable[[Snapshot], Snapshot]) -> bytes:
    return msgspec.msgpack.encode(change(trained().snapshot()))


BAD = {
    "schema": lambda s: msgspec.structs.replace(s, schema=SCHEMA + 1),
    "nan": lambda s: msgspec.structs.replace(s, load_ratios=[float("nan")]),
    "negative count": lambda s: msgspec.structs.replace(s, nodes=[msgspec.structs.replace(s.nodes[0], count=-1.0)]),
    "no context": lambda s: msgspec.structs.replace(s, nodes=[msgspec.structs.replace(s.nodes[0], context=[])]),
    "never seen": lambda s: msgspec.structs.replace(s, nodes=[msgspec.structs.replace(s.nodes[0], seen=0)]),
    "no such bin": lambda s: msgspec.structs.replace(
        s, absolute=msgspec.structs.replace(s.absolute, ended={10_000: 1.0})
    ),
    "scores": lambda s: msgspec.structs.replace(s, algorithms=[msgspec.structs.replace(s.algorithms[0], scores=[])]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_snapshot_is_refused_and_changes_nothing(name: str) -> None:
    policy = trained()
    before = policy.graph()

    with pytest.raises(ValueError, match="snapshot"):
        policy.restore(damaged(BAD[name]))

    assert policy.graph() == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff" * 40, b"null", b"\x93\x01", b"{" * 5000])
def test_what_is_no_snapshot_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="snapshot"):
        BreakEvenPolicy(Fleet(), 5.0).restore(content)


def test_flipped_bytes_are_refused_or_harmless() -> None:
    rng = random.Random(8)
    whole = msgspec.msgpack.encode(trained(times=3).snapshot())
    for _ in range(60):
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        policy = BreakEvenPolicy(Fleet(), 5.0)
        try:
            policy.restore(bytes(content))
        except ValueError:
            continue
        policy.called(question())
        policy.idle("t/a", 50_001.0)


def in_pieces(policy: BreakEvenPolicy) -> tuple[bytes, int]:
    pieces, stops = policy.pack(), 0
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return msgspec.msgpack.encode(end.value), stops
        stops += 1


def test_what_is_packed_piece_by_piece_is_the_same() -> None:
    policy = trained()

    assert msgspec.msgpack.decode(in_pieces(policy)[0], type=Snapshot) == policy.snapshot()


def test_a_large_snapshot_stops_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = trained()
    _, once = in_pieces(policy)
    monkeypatch.setattr("algomesh_services.prewarmer.snapshots._PIECE", 2)

    assert in_pieces(policy)[1] > 4 * once


def test_what_is_learned_while_it_is_packed_does_no_harm() -> None:
    policy = trained()
    pieces, made = policy.pack(), None
    number = 0
    while made is None:
        chain(policy, f"meanwhile{number}", 1e6 + 1e3 * number, ("t/x", "t/y", f"t/z{number}"))
        number += 1
        try:
            next(pieces)
        except StopIteration as end:
            made = end.value

    restored = BreakEvenPolicy(Fleet(), 5.0)
    restored.restore(msgspec.msgpack.encode(made))
    assert restored.graph()
