"""From pipelines to routes."""

import itertools
import time
from collections.abc import Iterator
from functools import reduce
from operator import or_

import pytest

import algomesh
from algomesh.compiling import check_fit, compile_route
from algomesh.errors import BadInput, BadReference
from algomesh.pipeline import Pipeline, stage
from algomesh_broker.directory import UnknownAlgorithm
from algomesh_broker.messages import VersionEntry
from algomesh_broker.names import Reference, Version, VersionId
from algomesh_broker.route import END, HEAD, AllStep, CallStep, EachStep, Route

A, B, C, D = (stage(f"test/{letter}") for letter in "abcd")


class Shelf:
    """A directory of what a test puts there; everything else is version 1.0.0 and takes anything."""

    def __init__(self, **entries: VersionEntry) -> None:
        self.entries = entries
        self.asked: list[str] = []

    def resolve(self, reference: Reference) -> tuple[VersionId, VersionEntry]:
        self.asked.append(str(reference))
        if reference.name == "missing":
            raise UnknownAlgorithm(reference.algorithm, [])
        entry = self.entries.get(reference.name, VersionEntry(version=reference.version or "1.0.0"))
        return VersionId(reference.owner, reference.name, Version.parse(entry.version)), entry


def named(pipeline: Pipeline) -> VersionEntry:
    return VersionEntry(version="1.0.0", pipeline=pipeline.to_json())


def compiled(pipeline: Pipeline, **entries: VersionEntry) -> Route:
    return compile_route(pipeline, Shelf(**entries).resolve)


def test_the_steps_of_the_picture() -> None:
    route = compiled(A | (B & C | D) | stage("test/e/2.0.0"))

    assert route.steps == [
        CallStep("test/a/1.0.0", 1, attempts=3),
        AllStep([2, 3], 4),
        CallStep("test/b/1.0.0", END, attempts=3),
        CallStep("test/c/1.0.0", END, attempts=3),
        CallStep("test/d/1.0.0", 5, attempts=3),
        CallStep("test/e/2.0.0", END, attempts=3),
    ]
    assert Route.decode(route.data).steps == route.steps


def test_names_options_and_eaches_are_in_the_steps() -> None:
    route = compiled(algomesh.all(x=A.options(timeout=5, retry=False, cache=60), y=B.each(3, ordered=False)))

    assert route.steps == [
        AllStep([1, 2], END, ["x", "y"]),
        CallStep("test/a/1.0.0", END, 5.0, 1, 60.0),
        EachStep(3, END, 3, False),
        CallStep("test/b/1.0.0", END, attempts=3),
    ]


def test_a_chain_within_each_within_a_fan_out() -> None:
    route = compiled((A | (B | C.each()).each()) & D)

    assert route.places[3].forwarder == 1
    assert route.places[3].joiner == 1
    assert route.places[5].forwarder == 3
    assert route.places[1].joiner == HEAD
    assert [place.version.name for place in route.places.values()] == ["a", "b", "c", "d"]


def test_what_the_version_says_of_retries_is_in_its_step() -> None:
    step = compiled(A, a=VersionEntry(version="1.0.0", attempts=1)).steps[0]

    assert isinstance(step, CallStep)
    assert step.attempts == 1


def test_a_reference_means_one_version_within_a_pipeline() -> None:
    versions: Iterator[int] = itertools.count(1)

    def resolve(reference: Reference) -> tuple[VersionId, VersionEntry]:
        version = Version(next(versions), 0, 0)
        return VersionId("test", "a", version), VersionEntry(version=str(version))

    assert len(compile_route(A | A | A.each(), resolve).versions) == 1


def test_a_named_pipeline_stands_in_place() -> None:
    inner = A | (B & C)

    assert compiled(D | stage("test/inner") | D, inner=named(inner)).steps == compiled(D | inner | D).steps
    assert compiled(stage("test/outer").each(), outer=named(stage("test/inner")), inner=named(A | B)).steps == (
        compiled((A | B).each()).steps
    )


def test_a_cycle_of_named_pipelines_is_named() -> None:
    with pytest.raises(BadReference, match=r"test/x/1.0.0 → test/y/1.0.0 → test/x/1.0.0; publish"):
        compiled(A | stage("test/x"), x=named(B | stage("test/y")), y=named(stage("test/x").each()))
    with pytest.raises(BadReference, match=r"test/x/1\.0\.0 → test/x/1\.0\.0"):
        compiled(stage("test/x"), x=named(stage("test/x") | A))


def test_a_named_pipeline_twice_is_no_cycle() -> None:
    assert len(compiled(stage("test/x") | stage("test/x"), x=named(A | B)).steps) == 4


def test_options_on_a_named_pipeline_are_refused() -> None:
    with pytest.raises(BadInput, match="options belong to its stages"):
        compiled(stage("test/x").options(timeout=5), x=named(A | B))


def test_named_pipelines_that_multiply_are_refused_before_they_are_large() -> None:
    entries = {f"p{level}": named(reduce(or_, [stage(f"test/p{level + 1}")] * 50)) for level in range(10)}

    with pytest.raises(BadInput, match="over 4,096 steps"):
        compiled(stage("test/p0"), **entries)


def test_a_thousand_stages_compile_at_once() -> None:
    pipeline = reduce(or_, [stage(f"test/s{number}") for number in range(1000)])
    shelf = Shelf()
    took, route = [], compiled(A)
    for _ in range(5):
        began = time.process_time()
        route = compile_route(pipeline, shelf.resolve)
        took.append(time.process_time() - began)

    assert [step.next for step in route.steps] == [*range(1, 1000), END]
    assert min(took) < 0.1  # some 10 ms; loaded machines take their time


def test_an_unknown_algorithm_is_the_directorys_error() -> None:
    with pytest.raises(UnknownAlgorithm, match="test/missing"):
        compiled(A | stage("test/missing"))


def test_types_are_compared_by_the_directory() -> None:
    entries = {
        "a": VersionEntry(version="1.0.0", gives="text"),
        "b": VersionEntry(version="1.0.0", takes="json:object"),
        "c": VersionEntry(version="1.0.0", takes="text", gives="json:array[text]"),
    }

    said = "test/a/1.0.0 gives text, and test/b/1.0.0 takes json:object"
    with pytest.raises(BadInput, match=said):
        compiled(A | B, **entries)
    with pytest.raises(BadInput, match=said):
        compiled(A | (C & B), **entries)
    with pytest.raises(BadInput, match=r"each test/b/1\.0\.0 takes"):
        check_fit(A | C | B.each(), Shelf(**entries).resolve)
    check_fit(A | C | C.each() | D, Shelf(**entries).resolve)


def test_what_is_not_published_yet_may_fit() -> None:
    check_fit(A | stage("test/missing") | B, Shelf().resolve)
