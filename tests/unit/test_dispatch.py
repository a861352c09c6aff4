"""Inline or in a thread."""

from algomesh.instance.dispatch import DispatchChoice


def proved() -> DispatchChoice:
    choice = DispatchChoice("thread", is_fixed=False)
    for _ in range(16):
        choice.observe(0.0001)
    return choice


def test_it_goes_inline_when_it_has_proved_short() -> None:
    choice = DispatchChoice("thread", is_fixed=False)

    changes = [choice.observe(0.0001) for _ in range(16)]

    assert changes == [False] * 15 + [True]
    assert choice.mode == "inline"


def test_a_slow_function_stays_in_its_thread() -> None:
    choice = DispatchChoice("thread", is_fixed=False)

    for number in range(1000):
        choice.observe(0.02 if number % 4 == 0 else 0.0001)

    assert choice.mode == "thread"


def test_a_run_that_only_waited_proves_nothing() -> None:
    choice = DispatchChoice("thread", is_fixed=False)
    for _ in range(15):
        choice.observe(0.0001, 0.0001)

    assert not choice.observe(0.008, 0.0001)
    assert choice.observe(0.0001, 0.0001)


def test_one_slow_run_on_a_busy_machine_changes_nothing() -> None:
    choice = proved()

    assert not choice.observe(0.012)
    assert choice.mode == "inline"


def test_runs_that_hold_up_the_loop_send_it_back() -> None:
    choice = proved()

    assert [choice.observe(0.012) for _ in range(3)] == [False, False, True]
    assert choice.mode == "thread"


def test_a_run_that_holds_it_up_badly_sends_it_back_at_once() -> None:
    assert proved().observe(0.2)


def test_the_second_proof_takes_four_times_as_long() -> None:
    choice = proved()
    choice.observe(0.2)

    changes = [choice.observe(0.0001) for _ in range(64)]

    assert changes == [False] * 63 + [True]


def test_a_fixed_choice_stays() -> None:
    choice = DispatchChoice("inline", is_fixed=True)

    choice.observe(10.0)

    assert choice.mode == "inline"
