import math

import pytest

from algomesh_services.prewarmer.clock import Clock


class Time:
    def __init__(self) -> None:
        self.wall, self.steady = 1.8e9, 50.0

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


def test_what_was_a_moment_ago_was_then() -> None:
    time = Time()
    clock = Clock(lambda: time.wall, lambda: time.steady)
    time.pass_by(10.0)

    assert clock.now() == pytest.approx(1.8e9 + 10)
    assert clock.of(time.wall - 0.25) == pytest.approx(clock.now() - 0.25)


@pytest.mark.parametrize("step_s", [3.0, -3_600.0, 1e9, -1e9, math.inf, -math.inf, math.nan])
def test_what_another_clock_says_is_as_good_as_now(step_s: float) -> None:
    time = Time()
    clock = Clock(lambda: time.wall, lambda: time.steady)

    assert clock.of(time.wall + step_s) == clock.now()


def test_our_time_goes_on_when_our_clock_steps() -> None:
    time = Time()
    clock = Clock(lambda: time.wall, lambda: time.steady)
    before = clock.now()
    time.wall -= 86_400.0
    time.pass_by(1.0)

    assert clock.now() == pytest.approx(before + 1.0)
    assert clock.of(time.wall - 0.5) == pytest.approx(before + 0.5)
    assert clock.wall_of(before) == pytest.approx(time.wall - 1.0)
