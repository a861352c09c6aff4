"""When a lost connection tries again."""

from algomesh_broker.errors import Unauthenticated, Unreachable
from algomesh_broker.retry import Retry, is_silence

AWAY = Unreachable("refused")
REFUSED = Unauthenticated("the mesh does not know this key")


def wait_s(*, is_program: bool, outage_s: float, error: Exception = AWAY, took_s: float = 0.0) -> float:
    return Retry(is_program=is_program, now=100.0).wait_s(error, took_s=took_s, now=100.0 + outage_s)


def test_programs_try_again_sooner_than_callers_when_a_server_has_just_gone() -> None:
    assert max(wait_s(is_program=True, outage_s=0.0) for _ in range(50)) <= 0.02
    assert min(wait_s(is_program=False, outage_s=0.0) for _ in range(50)) >= 0.025


def test_the_waits_grow_with_the_outage_up_to_half_a_second() -> None:
    for outage_s in (0.5, 1.0, 2.0):
        waits = [wait_s(is_program=False, outage_s=outage_s) for _ in range(50)]
        assert outage_s / 8 <= min(waits) <= max(waits) <= outage_s / 4
    assert 0.25 <= wait_s(is_program=True, outage_s=3600.0) <= 0.5


def test_only_a_caller_lets_others_pass_before_it_says_who_it_is() -> None:
    assert Retry(is_program=True, now=0.0).pause_s() == 0.0
    assert 0.1 <= Retry(is_program=False, now=0.0).pause_s() <= 0.2


def test_a_late_no_means_that_nobody_answered() -> None:
    assert is_silence(REFUSED, 1.0)
    assert not is_silence(REFUSED, 0.2)
    assert not is_silence(AWAY, 1.0)


def test_whoever_was_not_answered_tries_again_at_once_however_long_it_lasts() -> None:
    retry = Retry(is_program=False, now=0.0)

    waits = [retry.wait_s(REFUSED, took_s=1.1, now=float(turn)) for turn in range(1, 100)]

    assert max(waits) <= 0.05


def test_whoever_is_refused_again_and_again_asks_rarely() -> None:
    retry = Retry(is_program=False, now=0.0)

    waits = [retry.wait_s(REFUSED, took_s=0.1, now=float(turn)) for turn in range(1, 23)]

    assert max(waits[:20]) <= 0.5
    assert min(waits[20:]) >= 5.0
