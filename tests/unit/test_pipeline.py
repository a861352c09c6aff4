"""Pipelines as values: composing, equality, bounds, JSON."""

import json
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import msgspec
import pytest

import algomesh
from algomesh.errors import BadInput, BadReference
from algomesh.pipeline import All, Chain, Each, Stage, pipeline_schema, stage
from algomesh_broker.names import Reference

A, B, C, D = (stage(f"test/{letter}") for letter in "abcd")


@algomesh.algorithm("test/words", version="1.0.0")
def words(text: str) -> list[str]:
    """Text to words."""
    return text.split()


@algomesh.algorithm("test/total", version="1.0.0")
def total(numbers: list[int]) -> int:
    """The sum."""
    return sum(numbers)


@algomesh.algorithm("test/shout", version="1.0.0")
def shout(text: str) -> str:
    """Capitals."""
    return text.upper()


def test_a_chain_of_chains_is_one_chain() -> None:
    assert (A | B) | (C | D) == A | B | C | D == A | (B | (C | D))
    assert Chain((A, B, C)) == (A | B | C)


def test_a_fan_out_of_fan_outs_is_flat_and_all_nests() -> None:
    assert All((A, B, C)) == A & B & C
    assert All((A, B, C, D)) == (A & B) & (C & D)
    assert algomesh.all(A, B) & C == All((All((A, B)), C))
    assert algomesh.all(x=A, y=B) & C == All((All((A, B), ("x", "y")), C))
    assert algomesh.all(A, algomesh.all(B, C)) == All((A, All((B, C))), nests=True)
    assert (algomesh.all(A, B) | C) == (A & B | C)


def test_and_binds_tighter_than_or() -> None:
    assert Chain((A, All((B, C)), D)) == A | (B & C | D)
    assert A | B & C | D == A | (B & C) | D


def test_references_and_algorithms_are_operands_on_both_sides() -> None:
    assert "Test/A" | B == A | B
    assert A | "test/b" == A | B
    assert "test/a" & B == A & B
    assert A | Reference("test", "b") == A | B
    assert "test/a" | words == stage("test/a") | stage("test/words/1.0.0")
    assert words | "test/a" == stage("test/words/1.0.0") | A
    assert words & shout == stage(words) & stage(shout)
    assert words.each() == Each(stage("test/words/1.0.0"))


def test_an_algorithm_stays_a_plain_callable() -> None:
    assert words("a b") == ["a", "b"]


def test_equal_pipelines_are_one_key() -> None:
    known = {A | B & C: "first"}

    assert known["test/a" | (B & C)] == "first"
    assert A | B != B | A
    assert A.options(timeout=5) != A
    assert stage(words) == stage("test/words/1.0.0")


def test_a_pipeline_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        (A | B).stages = ()  # type: ignore[attr-defined]


def test_options_belong_to_a_stage() -> None:
    made = A.options(timeout="5m", retry=False, cache="10m").options(timeout=2)

    assert made == Stage("test/a", 2.0, 1, 600.0)
    assert A.options(cache=False, retry=True) == Stage("test/a", None, 3, 0.0)
    with pytest.raises(BadInput, match="options belong to one stage, and this has 2"):
        (A | B).options(timeout=5)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: A.options(timeout="soon"), "not a duration"),
        (lambda: A.options(retry=0), "attempts from 1 to 100"),
        (lambda: A.each(in_flight=0), "from 1 to 1024"),
        (lambda: A.each(in_flight=1025), "from 1 to 1024"),
        (lambda: A.each(in_flight=True), "from 1 to 1024"),
        (algomesh.all, "has branches"),
        (lambda: algomesh.all(A, x=B), "has branches"),
    ],
)
def test_what_is_out_of_bounds_is_refused(build: Callable[[], Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        build()


def test_what_is_no_stage_is_refused() -> None:
    with pytest.raises(BadReference, match="not a reference"):
        _ = A | "nonsense"
    with pytest.raises(BadReference, match="int is no part of a pipeline"):
        algomesh.all(1)  # type: ignore[arg-type]
    with pytest.raises(BadReference, match="is not one stage"):
        stage(A | B)
    with pytest.raises(TypeError):
        _ = A | 1  # type: ignore[operator]


def test_four_thousand_stages_are_the_most() -> None:
    most = reduce(operator.or_, [A] * 4000)

    assert most.size == 4000
    with pytest.raises(BadInput, match="at most 4,000 stages"):
        _ = most | A
    with pytest.raises(BadInput, match="at most 4,000 stages"):
        _ = most & A


def test_thirty_two_levels_are_the_most() -> None:
    nested: algomesh.Pipeline = A
    for _ in range(32):
        nested = nested.each()

    assert nested.depth == 32
    with pytest.raises(BadInput, match="at most 32 deep"):
        nested.each()


@pytest.mark.parametrize(
    "pipeline",
    [
        A,
        A.options(timeout=5, retry=2, cache=60),
        A | B | C,
        A | (B & C | D),
        algomesh.all(x=A, y=B | C).each(in_flight=3, ordered=False) | D,
        algomesh.all(A, algomesh.all(B, C)),
    ],
    ids=repr,
)
def test_a_pipeline_comes_back_from_its_json(pipeline: algomesh.Pipeline) -> None:
    back = algomesh.Pipeline.from_json(pipeline.to_json())

    assert back == pipeline
    assert back.to_json() == pipeline.to_json()


def test_the_json_form_has_a_schema() -> None:
    schema = pipeline_schema()

    assert set(schema["discriminator"]["mapping"]) == {"stage", "chain", "all", "each"}
    assert schema["$defs"]["Chain"]["properties"]["stages"]["items"]["discriminator"] == schema["discriminator"]
    assert schema["$defs"]["Stage"]["required"] == ["kind", "reference"]


def test_a_hand_written_chain_in_a_chain_is_one_chain() -> None:
    inner = {"kind": "chain", "stages": [{"kind": "stage", "reference": "test/b"}]}
    text = json.dumps({"kind": "chain", "stages": [{"kind": "stage", "reference": "TEST/a"}, inner]})

    assert algomesh.Pipeline.from_json(text) == A | B


@pytest.mark.parametrize(
    ("form", "error", "said"),
    [
        ("{", BadInput, "not a pipeline"),
        ({"kind": "loop"}, BadInput, "loop"),
        ({"kind": "stage"}, BadInput, "reference"),
        ({"kind": "stage", "reference": "a/b", "speed": 1}, BadInput, "speed"),
        ({"kind": "stage", "reference": "nonsense"}, BadReference, r"not a reference.*`\$`"),
        ({"kind": "stage", "reference": "a/b", "timeout_s": -1}, BadInput, r"timeout_s=-1"),
        ({"kind": "stage", "reference": "a/b", "attempts": 0}, BadInput, "attempts"),
        ({"kind": "chain", "stages": []}, BadInput, "one stage at least"),
        ({"kind": "all", "branches": []}, BadInput, "one branch at least"),
        ({"kind": "each", "of": {"kind": "stage", "reference": "a/b"}, "in_flight": 0}, BadInput, "from 1 to 1024"),
        (
            {"kind": "chain", "stages": [{"kind": "all", "branches": [{"kind": "stage", "reference": "x"}]}]},
            BadReference,
            r"`\$\.stages\[0\]\.branches\[0\]`",
        ),
        (
            {"kind": "all", "branches": [{"kind": "stage", "reference": "a/b"}], "names": ["x", "y"]},
            BadInput,
            "one name for each branch",
        ),
        ('{"kind":"chain","stages":[' * 300 + '{"kind":"stage","reference":"a/b"}' + "]}" * 300, BadInput, "deep"),
        ('{"kind":"chain","stages":[' * 100_000, BadInput, "recursion"),
    ],
)
def test_json_that_is_no_pipeline_is_refused_with_its_path(form: Any, error: type[Exception], said: str) -> None:
    data = form if isinstance(form, str) else json.dumps(form)

    with pytest.raises(error, match=said):
        algomesh.Pipeline.from_json(data)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (
            lambda: shout | total,
            r"test/shout/1.0.0 gives text \(str\), and test/total/1.0.0 takes json:array.*list\[int\]",
        ),
        (lambda: words | total, r"gives json:array\[text\] \(list\[str\]\)"),
        (lambda: words | shout, "takes text"),
        (lambda: A | (total | shout), "takes text"),
        (lambda: words | (A & shout), "takes text"),
        (lambda: total | words.each(), "each test/words/1.0.0 takes"),
        (lambda: words | total.each(), "takes json:array"),
        (lambda: (words & shout) | total, "a fan-out gives"),
        (lambda: algomesh.all(x=words) | total, "a fan-out gives json:object"),
    ],
)
def test_neighbours_that_cannot_fit_are_refused_with_both_types(build: Callable[[], Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        build()


def test_neighbours_that_fit_or_are_unknown_are_taken() -> None:
    assert (shout | words | shout.each() | A | total).size == 5
    assert ((shout & shout) | shout.each()).size == 3


def test_the_json_form_is_small_and_flat() -> None:
    assert msgspec.json.decode((A | B.each()).to_json()) == {
        "kind": "chain",
        "stages": [
            {"kind": "stage", "reference": "test/a"},
            {"kind": "each", "of": {"kind": "stage", "reference": "test/b"}},
        ],
    }
