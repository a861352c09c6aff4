"""What wrong keys cost whom."""

import pytest

from algomesh import errors
from algomesh_services.gateway.refusals import BURST, PER_SECOND, REMEMBERED_S, Refusals


def test_a_refused_key_is_refused_again_until_it_is_forgotten() -> None:
    refusals = Refusals()
    refusals.refused(b"wrong", now=10.0)

    with pytest.raises(errors.Unauthenticated):
        refusals.check(b"wrong", now=10.0 + REMEMBERED_S - 0.1)
    refusals.check(b"other", now=10.0)
    refusals.check(b"wrong", now=10.0 + REMEMBERED_S)


def test_an_address_may_have_so_many_keys_refused() -> None:
    refusals = Refusals()
    for _ in range(int(BURST)):
        refusals.begin("10.0.0.1", now=0.0)

    with pytest.raises(errors.Overloaded):
        refusals.begin("10.0.0.1", now=0.0)
    refusals.begin("10.0.0.2", now=0.0)


def test_an_address_recovers_with_time() -> None:
    refusals = Refusals()
    for _ in range(int(BURST)):
        refusals.begin("10.0.0.1", now=0.0)

    refusals.begin("10.0.0.1", now=1.5 / PER_SECOND)

    with pytest.raises(errors.Overloaded):
        refusals.begin("10.0.0.1", now=1.5 / PER_SECOND)


def test_good_keys_cost_an_address_nothing() -> None:
    refusals = Refusals()

    for _ in range(10 * int(BURST)):
        refusals.begin("10.0.0.1", now=0.0)
        refusals.accepted("10.0.0.1")


def test_what_it_remembers_is_bounded() -> None:
    refusals = Refusals()

    for number in range(30_000):
        refusals.refused(number.to_bytes(4), now=0.0)
        refusals.begin(str(number), now=0.0)

    assert len(refusals._refused) <= 10_000
    assert len(refusals._buckets) <= 10_000
