"""The contract of the demo algorithms, called as plain functions."""

import time
from typing import Any

import pytest

from algomesh import AlgorithmError
from tests.catalog import load

demo = load("demo")


def test_every_demo_algorithm_has_the_version_that_acceptance_tests_call() -> None:
    names = ("clean", "tokenize", "count", "echo", "fail", "slow", "stream")

    assert [str(getattr(demo, name).version_id) for name in names] == [f"demo/{name}/0.1.0" for name in names]


def test_clean_lowers_and_joins_by_single_spaces() -> None:
    assert demo.clean("  Hello,   NATS \n World  ") == "hello, nats world"


def test_tokenize_splits_at_any_white_space() -> None:
    assert demo.tokenize("hello,  nats\nworld") == ["hello,", "nats", "world"]


def test_count_counts_the_items() -> None:
    assert demo.count(["a", 1, None]) == 3


@pytest.mark.parametrize("value", ["naïve ☃ text\n", "", {"a": [1, 2.5, None, True]}, [1, [2]], 42, None, b"\x00\xff"])
def test_echo_returns_what_came(value: Any) -> None:
    assert demo.echo(value) is value


def test_fail_raises_the_error_of_the_contract() -> None:
    with pytest.raises(AlgorithmError, match="demo failure") as caught:
        demo.fail("x")

    assert caught.value.error_type == "InputError"


def test_slow_sleeps_and_says_so() -> None:
    began = time.monotonic()

    assert demo.slow(0.01) == "slept"
    assert time.monotonic() - began >= 0.01


def test_stream_keeps_what_lies_between_single_spaces() -> None:
    assert list(demo.stream("a  b c")) == ["a", "", "b", "c"]
