"""Pipelines in this process."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

import algomesh
from algomesh.errors import BadInput, BadOutput, UnknownAlgorithm
from algomesh.pipeline import stage


@algomesh.algorithm("local/words", version="1.0.0")
def words(text: str) -> list[str]:
    """Words."""
    return text.split()


@algomesh.algorithm("local/shout", version="1.0.0")
def old_shout(text: str) -> str:
    """As it was."""
    return text


@algomesh.algorithm("local/shout", version="1.10.0")
async def shout(text: str) -> str:
    """Capitals."""
    await asyncio.sleep(0)
    return text.upper()


@algomesh.algorithm("local/shout", version="1.9.0")
def newer_shout(text: str) -> str:
    """As it was later."""
    return text + "!"


@algomesh.algorithm("local/double", version="0.1.0")
def double(values: np.ndarray) -> np.ndarray:
    """Twice."""
    return values * 2


@algomesh.algorithm("local/size", version="0.1.0")
def size(values: np.ndarray) -> int:
    """How many."""
    return int(values.size)


@algomesh.algorithm("local/letters", version="0.1.0")
def letters(text: str) -> Iterator[str]:
    """One by one."""
    yield from text


@algomesh.algorithm("local/aletters", version="0.1.0")
async def aletters(text: str) -> AsyncIterator[str]:
    """One by one, sometime."""
    for letter in text:
        await asyncio.sleep(0)
        yield letter


@algomesh.algorithm("local/break", version="0.1.0")
def broken(value: Any) -> Any:
    """Never works."""
    raise KeyError("lost")


@algomesh.algorithm("local/adder", version="0.1.0")
class Adder:
    """Adds what it loaded."""

    def load(self) -> None:
        """Load."""
        self.more = 10

    def apply(self, value: int) -> int:
        """Add."""
        return value + self.more


def test_a_nested_pipeline_runs_here() -> None:
    made = words | (shout.each(in_flight=2) & algomesh.all(all=stage("local/words/1").each() | "local/count"))

    @algomesh.algorithm("local/count", version="1.0.0")
    def count(lists: list[list[str]]) -> int:
        return len(lists)

    assert made.local("a b c") == [["A", "B", "C"], {"all": 3}]


def test_references_mean_the_newest_version_that_fits() -> None:
    assert stage("local/shout").local("a") == "A"
    assert stage("local/shout/1.9").local("a") == "a!"
    assert stage("local/shout/1.0.0").local("a") == "a"
    assert stage(newer_shout).local("a") == "a!"


def test_values_convert_as_in_the_mesh() -> None:
    assert (double & size).local([1.5, 2.5])[1] == 2
    assert (double | size).local([[1, 2], [3, 4]]) == 4
    assert (double.each() | "local/size").local(np.ones((3, 2))) == 6
    with pytest.raises(BadInput, match=r"local/size/0\.1\.0.*an array is wanted"):
        stage(size).local("text")
    with pytest.raises(BadInput, match="cannot travel"):
        stage(size).local(object())


def test_a_class_is_loaded_and_a_stream_is_a_list() -> None:
    assert stage("local/adder").local(1) == 11
    assert (letters | shout.each()).local("ab") == ["A", "B"]
    assert stage(aletters).local("ab") == ["a", "b"]


async def test_it_runs_where_a_loop_runs_already() -> None:
    assert (words | shout.each()).local("a b") == ["A", "B"]
    with pytest.raises(KeyError):
        stage(broken).local(1)


def test_what_is_unknown_here_is_named_before_anything_runs() -> None:
    with pytest.raises(UnknownAlgorithm, match="local/nobody is not in this process: import the module"):
        (broken | "local/nobody").local(1)
    with pytest.raises(UnknownAlgorithm, match="local/shout/2"):
        stage("local/shout/2").local("a")


def test_an_error_comes_as_it_is_with_a_note_of_its_stage() -> None:
    with pytest.raises(KeyError, match="lost") as caught:
        (words | broken.each()).local("a")

    assert caught.value.__notes__ == ["in the stage local/break/0.1.0"]


def test_output_that_cannot_travel_is_refused_here_too() -> None:
    @algomesh.algorithm("local/locks", version="1.0.0")
    def locks(value: Any) -> Any:
        return object()

    with pytest.raises(BadOutput, match=r"local/locks/1\.0\.0"):
        stage(locks).local(1)


def test_an_algorithm_that_is_gone_is_forgotten_unless_a_pipeline_holds_it() -> None:
    def make() -> algomesh.Pipeline:
        @algomesh.algorithm("local/fleeting", version="1.0.0")
        def fleeting(value: int) -> int:
            return value + 1

        return stage(fleeting) | fleeting

    held = make()

    assert held.local(1) == 3
    assert stage("local/fleeting").local(1) == 2
