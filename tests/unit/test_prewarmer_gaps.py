"""Gaps: hazards with censored ones, laws, opinions by their score, and who shares a delay."""

import random

import pytest

from algomesh_services.prewarmer.exposure import Load, fair_s, shares
from algomesh_services.prewarmer.forecasts import Forecast
from algomesh_services.prewarmer.gaps import MOST_CALLERS, OPINIONS, Gaps
from algomesh_services.prewarmer.hazards import BINS, EDGES, Histogram, bin_of, unknown
from algomesh_services.prewarmer.laws import Binned, Callers, Law, Sampled, Steady
from algomesh_services.prewarmer.pools import Pools
from algomesh_services.prewarmer.windows import gap_windows


def learned(values: list[float], caller: str | None = "me") -> Gaps:
    gaps, at_s = Gaps(), 0.0
    pools = Pools(is_on=False)
    gaps.called(caller, at_s)
    for gap_s in values:
        Forecast(gaps, pools, 1.0, at_s).score(gap_s, is_censored=False)
        at_s += gap_s
        gaps.learn(gap_s, is_censored=False)
        gaps.called(caller, at_s)
    return gaps


def test_a_gap_lies_in_its_bin() -> None:
    rng = random.Random(1)
    for gap_s in (0.0, 1e-9, 1e9, *(2 ** rng.uniform(-5, 18) for _ in range(200))):
        b = bin_of(gap_s)
        assert 0 <= b < BINS
        assert EDGES[b] <= gap_s * (1 + 1e-9) or b == 0
        assert gap_s <= EDGES[b + 1] * (1 + 1e-9) or b == BINS - 1


def test_a_histogram_approaches_what_it_saw() -> None:
    histogram = Histogram()
    for _ in range(200):
        for gap_s in (10.0, 1000.0):
            histogram.learn(gap_s)

    by = Binned(histogram.refine(unknown(1.0))).by([1.0, 9.0, 20.0, 500.0, 2000.0])

    assert by == pytest.approx([0.0, 0.0, 0.5, 0.5, 1.0], abs=0.15)


def test_gaps_cut_short_count_as_lasting_at_least_so_long() -> None:
    with_cut, without = Histogram(), Histogram()
    for _ in range(20):
        for histogram in (with_cut, without):
            histogram.learn(10.0)
        with_cut.learn(100.0, is_censored=True)

    late = [Binned(histogram.refine(unknown(1.0))).by([20.0])[0] for histogram in (with_cut, without)]

    assert late[0] == pytest.approx(0.5, abs=0.1)
    assert late[1] > 0.9


def test_a_histogram_that_counted_long_enough_to_overflow_still_knows_the_last_ones() -> None:
    histogram = Histogram()
    for _ in range(3000):
        histogram.learn(10.0)

    assert histogram.unit < 1e10
    assert histogram.longest() == bin_of(10.0)


@pytest.mark.parametrize(
    "law",
    [
        Steady(3.0, 60.0),
        Binned(unknown(2.0)),
        Sampled([], 2.0),
        Sampled([5.0, 5.0, 5.0], 2.0),
        Sampled([5.0, 7.0, 40.0], 2.0),
        Callers([(Sampled([60.0, 61.0], 2.0), 30.0), (Sampled([90.0], 2.0), 500.0)]),
    ],
)
def test_every_law_rises_from_zero_towards_one(law: Law) -> None:
    times = [0.0, 0.01, 1.0, 5.0, 5.0001, 6.0, 31.0, 60.0, 1e4, 1e9]

    by = law.by(times)

    assert by[0] == pytest.approx(0.0, abs=1e-9)
    assert by == sorted(by)
    assert 0.8 < by[-1] <= 1.0


def test_a_steady_rate_is_foretold_best_by_the_steady_opinion() -> None:
    rng = random.Random(3)

    gaps = learned([rng.expovariate(1 / 100) for _ in range(200)])

    assert max(zip(gaps.scores, OPINIONS, strict=True))[1] == "steady"


def test_a_period_is_foretold_best_by_samples_and_awaited_with_a_second_window() -> None:
    rng = random.Random(4)
    gaps = learned([60 + rng.gauss(0, 0.1) for _ in range(10)])

    forecast = Forecast(gaps, Pools(is_on=False), 1.0, 0.0)
    grid, by = forecast.curve(forecast.horizon_s(6.0))
    windows = gap_windows(grid, by, cold_s=1.0, rho=5.0, factors=(1.0,) * 16)

    assert max(zip(gaps.scores, OPINIONS, strict=True))[1] in {"sample", "callers"}
    awaited = [window for window in windows if window.start_s <= 59.0 and window.end_s >= 60.2]
    assert awaited
    assert sum(window.end_s - window.start_s for window in windows) < 15


def test_two_callers_with_periods_of_their_own_are_both_foretold() -> None:
    each = [(Sampled([60.0, 60.1, 59.9] * 4, 1.0), 10.0), (Sampled([90.0, 90.1, 89.9] * 4, 1.0), 80.0)]

    before, after, second = Callers(each).by([8.0, 12.0, 51.0])

    assert before < 0.25
    assert after > 0.8
    assert second > after


def test_of_many_callers_the_last_ones_are_followed() -> None:
    gaps = Gaps()
    for k in range(100):
        gaps.called(f"k~{k}", float(k))

    assert list(gaps.callers) == [f"k~{k}" for k in range(100 - MOST_CALLERS, 100)]


def test_a_clock_that_steps_back_teaches_no_gap() -> None:
    gaps = Gaps()
    gaps.called("me", 1000.0)
    gaps.called("me", 10.0)
    gaps.called("me", 15.0)

    assert gaps.callers["me"].gaps.in_order() == [5.0]


def test_calls_that_stop_are_not_awaited_for_ever() -> None:
    gaps = learned([2.0] * 100)

    forecast = Forecast(gaps, Pools(is_on=False), 10.0, 200.0)
    grid, by = forecast.curve(forecast.horizon_s(60.0))
    windows = gap_windows(grid, by, cold_s=10.0, rho=5.0, factors=(1.0,) * 16)

    assert windows[0].start_s == 0.0
    assert windows[0].end_s >= 2.0
    assert sum(window.end_s - window.start_s for window in windows) < 120.0


def test_a_new_algorithm_is_judged_by_others_of_its_rate() -> None:
    pools = Pools()
    for _ in range(40):
        other = learned([100.0, 101.0])
        for _ in range(3):
            pools.add(100.0, other.mean, is_censored=False)
    newcomer = learned([200.0])

    pooled = Binned(pools.hazards(newcomer.mean, 1.0)).by([120.0, 300.0])
    alone = Binned(Pools(is_on=False).hazards(newcomer.mean, 1.0)).by([120.0, 300.0])

    assert pooled[1] - pooled[0] > 0.8
    assert alone[1] - alone[0] < 0.1


def load(lead_s: float, hop: int = 0, *, cold_s: float = 10.0, is_real: bool = True) -> Load:
    return Load(cold_s, hop, lead_s, is_real)


def test_a_load_beside_a_longer_one_prolongs_nothing() -> None:
    short, long = shares([(0, None), (1, load(4.0)), (2, load(9.0))])

    assert short == 0.0
    assert long == pytest.approx(0.5)  # (9 − 4) of 10 s


def test_loads_one_after_the_other_prolong_each_by_itself() -> None:
    assert shares([(0, load(6.0, 0)), (1, load(3.0, 1))]) == pytest.approx([0.6, 0.3])


def test_a_warm_one_counts_as_if_it_had_been_off() -> None:
    assert shares([(0, None), (1, load(8.0, is_real=False))]) == pytest.approx([0.8])
    assert shares([(0, None), (1, load(8.0, is_real=False)), (2, load(9.0))])[0] == 0.0


def test_a_load_that_is_done_in_time_is_not_exposed() -> None:
    assert shares([(0, None), (1, load(-3.0))]) == [0.0]


def test_fair_shares_add_up_to_the_longest() -> None:
    rng = random.Random(5)
    leads = sorted(rng.uniform(0, 10) for _ in range(9))

    assert sum(fair_s(leads, lead) for lead in leads) == pytest.approx(leads[-1])
