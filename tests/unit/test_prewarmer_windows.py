"""Windows of least expected cost, each rule beside a search through all windows."""

import random

import pytest

from algomesh_services.prewarmer.windows import Ahead, gap_windows

ONES = (1.0,) * 64


def cost_of_call(start_s: float, end_s: float, delay_s: float, cold_s: float, rho: float) -> float:
    """The formula of the module's docstring."""
    if delay_s < start_s:
        return (rho + 1) * cold_s
    if delay_s <= end_s:
        return max(delay_s, start_s + cold_s) - start_s + rho * max(0.0, start_s + cold_s - delay_s)
    return end_s - start_s + (rho + 1) * cold_s


def expected(start_s: float, end_s: float, p: float, delays: list[float], cold_s: float, rho: float) -> float:
    called = sum(cost_of_call(start_s, end_s, d, cold_s, rho) for d in delays) / len(delays)
    return p * called + (1 - p) * (end_s - start_s)


@pytest.mark.parametrize("rho", [0.5, 5.0, 30.0])
def test_nothing_is_started_when_the_probability_is_below_break_even(rho: float) -> None:
    below, above = 1 / (1 + rho) - 0.01, 1 / (1 + rho) + 0.01

    assert Ahead(below, [9.0] * 4, ONES, cold_s=4.0, rho=rho, over_s=9.0).from_off_s() is None
    assert Ahead(above, [9.0] * 4, ONES, cold_s=4.0, rho=rho, over_s=9.0).from_off_s() == pytest.approx(5.0)


def test_a_certain_call_is_started_just_in_time() -> None:
    window = Ahead(1.0, [10.0] * 8, ONES, cold_s=4.0, rho=5.0, over_s=None).best(None)

    assert window is not None
    assert window.start_s == pytest.approx(6.0)
    assert window.end_s >= 10.0


def test_what_comes_sooner_than_a_load_is_started_at_once() -> None:
    window = Ahead(1.0, [1.0] * 8, ONES, cold_s=4.0, rho=5.0, over_s=None).best(None)

    assert window is not None
    assert window.start_s == 0.0


def test_loads_that_vary_are_started_earlier() -> None:
    spread = (0.5, 1.5) * 8

    steady = Ahead(1.0, [20.0] * 16, ONES, cold_s=4.0, rho=5.0, over_s=None).from_off_s()
    varied = Ahead(1.0, [20.0] * 16, spread, cold_s=4.0, rho=5.0, over_s=None).from_off_s()

    assert steady is not None
    assert varied is not None
    assert varied < steady


@pytest.mark.parametrize("seed", range(8))
def test_start_and_end_cost_hardly_more_than_the_best_of_all_windows(seed: int) -> None:
    rng = random.Random(seed)
    p, rho, cold_s = rng.uniform(0.4, 1.0), rng.choice([2.0, 5.0, 20.0]), rng.uniform(1, 10)
    middle = rng.uniform(2, 30)
    delays = sorted(middle + rng.uniform(-1, 1) * min(middle, 5.0) for _ in range(200))
    sample = delays[::13]

    window = Ahead(p, sample, ONES, cold_s=cold_s, rho=rho, over_s=None).best(None)
    start_s, end_s = (window.start_s, window.end_s) if window is not None else (0.0, 0.0)
    found = expected(start_s, end_s, p, delays, cold_s, rho)

    nothing = p * (rho + 1) * cold_s
    starts, ends = [k * 0.5 for k in range(80)], [k * 1.0 for k in range(45)]
    best = min(nothing, *(expected(s, e, p, delays[::4], cold_s, rho) for s in starts for e in ends if e >= s))
    # It saw 16 of the 200, and allows for what a sample of 16 cannot know.
    assert found <= best + 0.1 * nothing


@pytest.mark.parametrize("seed", range(8))
def test_the_saving_it_states_is_that_of_the_formula(seed: int) -> None:
    rng = random.Random(seed)
    delays = [rng.uniform(1, 20) for _ in range(5)]
    p, rho, cold_s = rng.uniform(0.5, 1.0), 5.0, rng.uniform(1, 10)
    beyond = max(delays) + max(max(delays) - min(delays), cold_s)

    window = Ahead(p, delays, ONES, cold_s=cold_s, rho=rho, over_s=None).best(None)

    start_s, end_s, saved_s, _ = window if window is not None else (0.0, 0.0, 0.0, 0.0)
    cost = expected(start_s, end_s, p, [*delays, beyond], cold_s, rho)
    assert saved_s == pytest.approx(p * (rho + 1) * cold_s - cost)


def test_a_load_in_flight_goes_on_or_is_let_go_and_never_begins_again_at_once() -> None:
    likely = Ahead(0.9, [5.0] * 8, ONES, cold_s=4.0, rho=5.0, over_s=6.0).best(1.0)
    hopeless = Ahead(0.01, [50.0] * 8, ONES, cold_s=4.0, rho=5.0, over_s=60.0).best(1.0)

    assert likely is not None
    assert (likely.start_s, likely.end_s >= 5.0) == (0.0, True)
    assert hopeless is None


def test_what_is_warm_but_needed_late_is_let_go_and_started_again() -> None:
    window = Ahead(1.0, [100.0] * 8, ONES, cold_s=4.0, rho=5.0, over_s=None).best(0.0)

    assert window is not None
    assert window.start_s == pytest.approx(96.0)


def test_a_request_that_ends_soon_bounds_what_is_lost() -> None:
    brief = Ahead(0.3, [2.0] * 8, ONES, cold_s=10.0, rho=5.0, over_s=2.5).best(None)
    endless = Ahead(0.3, [2.0] * 8, ONES, cold_s=10.0, rho=5.0, over_s=None).best(None)

    assert brief is not None
    assert endless is None or brief.saved_s > endless.saved_s


def gap_cost(
    windows: list[tuple[float, float]], grid: list[float], by: list[float], cold_s: float, rho: float
) -> float:
    """Expected cost of a gap by brute force over small steps; a window that begins at 0 is warm from the start."""
    cost, steps = 0.0, 1000
    last = grid[-1]

    def f(t: float) -> float:
        for k in range(len(grid) - 1):
            if grid[k] <= t <= grid[k + 1]:
                return by[k] + (by[k + 1] - by[k]) * (t - grid[k]) / (grid[k + 1] - grid[k])
        return by[-1]

    for n in range(steps):
        begin, end = last * n / steps, last * (n + 1) / steps
        chance, at = f(end) - f(begin), (begin + end) / 2
        held, missed = 0.0, (rho + 1) * cold_s
        for start, until in windows:
            held += max(0.0, min(at, until) - start)
            if start <= at <= until:
                late = max(0.0, start + cold_s - at) if start > 0 else 0.0
                missed = (rho + 1) * late
        cost += chance * (held + missed)
    return cost + (1 - by[-1]) * sum(until - start for start, until in windows)


def test_a_steady_rate_is_kept_exactly_when_its_hazard_pays() -> None:
    grid = [k * 2.0 for k in range(200)]

    for every_s, is_kept in ((20.0, True), (36.0, False)):
        by = [1 - 2.718281828 ** (-t / every_s) for t in grid]
        windows = gap_windows(grid, by, cold_s=5.0, rho=5.0, factors=ONES[:16])  # breaks even at 30 s
        assert bool(windows) is is_kept


def test_a_period_is_let_go_and_awaited() -> None:
    grid = [0.0, 40.0, 80.0, 95.0, 99.0, 101.0, 150.0, 300.0]
    by = [0.0, 0.01, 0.02, 0.03, 0.04, 0.96, 0.97, 0.98]

    windows = gap_windows(grid, by, cold_s=4.0, rho=5.0, factors=ONES[:16])

    assert [(window.start_s, window.end_s) for window in windows] == [(95.0, 101.0)]


@pytest.mark.parametrize("seed", range(4))
def test_windows_of_a_gap_cost_no_more_than_any_pair_of_windows(seed: int) -> None:
    rng = random.Random(seed)
    grid = [0.0, *sorted(rng.uniform(1, 100) for _ in range(9))]
    shares = [0.0, *sorted(rng.random() for _ in range(9))]
    cold_s, rho = rng.uniform(2, 10), 5.0

    windows = [(w.start_s, w.end_s) for w in gap_windows(grid, shares, cold_s=cold_s, rho=rho, factors=ONES[:16])]
    found = gap_cost(windows, grid, shares, cold_s, rho)

    ends = [(a, b) for a in grid for b in grid if b - a >= cold_s or a == 0.0]
    for keep_s in grid[::3]:
        for start, until in rng.sample(ends, min(3, len(ends))):
            if start > keep_s:
                assert found <= gap_cost([(0.0, keep_s), (start, until)], grid, shares, cold_s, rho) + 0.05 * cold_s
        assert found <= gap_cost([(0.0, keep_s)], grid, shares, cold_s, rho) + 0.05 * cold_s
