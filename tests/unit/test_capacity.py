"""Slots and the small backlog."""

from algomesh.instance.capacity import Capacity


def learned(slots: int, took_s: float) -> Capacity:
    capacity = Capacity(slots)
    for _ in range(8):
        capacity.observe(took_s)
    return capacity


def test_a_new_instance_has_no_backlog() -> None:
    assert Capacity(1).backlog_limit == 0


def test_a_fast_algorithm_may_keep_what_it_finishes_in_five_milliseconds() -> None:
    assert learned(1, 0.0005).backlog_limit == 10
    assert learned(4, 0.0005).backlog_limit == 40


def test_slots_that_only_gather_make_no_backlog() -> None:
    capacity = Capacity(64, at_once=1)
    for _ in range(8):
        capacity.observe(0.0005)

    assert (capacity.free, capacity.backlog_limit) == (64, 10)


def test_a_slow_algorithm_keeps_none() -> None:
    assert learned(8, 0.006).backlog_limit == 0


def test_the_backlog_is_bounded_however_fast_it_is() -> None:
    assert learned(1, 0.0).backlog_limit == 256


def test_full_is_slots_and_backlog() -> None:
    capacity = learned(1, 0.0025)
    capacity.take()

    assert capacity.backlog_limit == 2
    assert not capacity.is_full(1)
    assert capacity.is_full(2)


def test_it_comes_back_when_half_of_it_is_done() -> None:
    capacity = learned(1, 0.0005)
    capacity.take()

    assert not capacity.has_eased(8)
    assert capacity.has_eased(4)


def test_a_slow_one_comes_back_with_its_slot() -> None:
    capacity = learned(1, 0.1)
    capacity.take()
    assert not capacity.has_eased(0)

    capacity.give()

    assert capacity.has_eased(0)
