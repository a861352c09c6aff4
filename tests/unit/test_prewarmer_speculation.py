import msgspec
import pytest

from algomesh_services.prewarmer.snapshots import AccountState
from algomesh_services.prewarmer.speculation import FREE_GPU_S, WINDOW_S, Speculation


def test_a_new_caller_may_waste_a_little() -> None:
    speculation = Speculation()
    assert speculation.may("k~new", 0.0)

    speculation.wasted("k~new", FREE_GPU_S, 10.0)
    assert speculation.may("k~new", 10.0)

    speculation.wasted("k~new", 1.0, 10.0)
    assert not speculation.may("k~new", 10.0)
    assert speculation.may("k~other", 10.0)


def test_who_computes_much_may_waste_half_of_it() -> None:
    speculation = Speculation()
    speculation.computed("k~busy", 1_000.0, 0.0)

    speculation.wasted("k~busy", 499.0, 1.0)
    assert speculation.may("k~busy", 1.0)
    speculation.wasted("k~busy", 2.0, 1.0)
    assert not speculation.may("k~busy", 1.0)


def test_what_is_used_after_all_was_not_wasted() -> None:
    speculation = Speculation()
    speculation.wasted("k~a", 2 * FREE_GPU_S, 0.0)
    speculation.wasted("k~a", -2 * FREE_GPU_S, 5.0)

    assert speculation.may("k~a", 5.0)


def test_an_hour_later_it_is_forgotten() -> None:
    speculation = Speculation()
    speculation.wasted("k~a", 2 * FREE_GPU_S, 0.0)

    assert not speculation.may("k~a", WINDOW_S - 1.0)
    assert speculation.may("k~a", WINDOW_S + 1.0)


def test_holds_for_nobody_in_particular_are_nobodys_waste() -> None:
    speculation = Speculation()
    speculation.wasted("", 1e6, 0.0)

    assert speculation.may("", 0.0)


def kept(speculation: Speculation) -> list[AccountState]:
    """What a snapshot keeps of it."""
    pieces = speculation.pack()
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return msgspec.msgpack.decode(msgspec.msgpack.encode(end.value), type=list[AccountState])


def test_a_budget_that_is_spent_is_spent_after_a_restart_too() -> None:
    before = Speculation()
    for number in range(250):  # more than one piece
        before.wasted(f"k~{number}", FREE_GPU_S + 1, 1_000.0)
    before.computed("k~7", 10 * FREE_GPU_S, 1_000.0)

    after = Speculation()
    after.take_over(Speculation.of(kept(before)))

    assert not after.may("k~0", 1_001.0)
    assert not after.may("k~249", 1_001.0)
    assert after.may("k~7", 1_001.0)
    assert after.may("k~0", 1_000.0 + 2 * WINDOW_S)


def test_a_damaged_account_is_refused() -> None:
    with pytest.raises(ValueError, match="k~x"):
        Speculation.of([AccountState("k~x", [(1, float("nan"), 0.0)])])
