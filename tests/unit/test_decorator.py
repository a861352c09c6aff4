"""@algorithm, its options, and how it reads input."""

import json
from typing import Any

import msgspec
import numpy as np
import pytest

import algomesh
from algomesh import content
from algomesh.decorator import parse_memory
from algomesh.durations import parse_duration
from algomesh.errors import BadInput, BadReference


class Order(msgspec.Struct):
    name: str
    count: int


@algomesh.algorithm("Demo/Clean", version="1.2.0", gpu=0.25, memory="2Gi", idle="2m", retry=False, preload=["torch"])
def clean(text: str) -> str:
    """Fold spaces.

    More words.
    """
    return " ".join(text.split())


class CounterBody:
    """Counts."""

    loads = 0

    def load(self) -> None:
        CounterBody.loads += 1
        self.base = 10

    def apply(self, order: Order) -> int:
        return self.base + order.count


# Type checkers know no decorator that turns a class into something else.
Counter: Any = algomesh.algorithm("demo/counter", version="0.1.0")(CounterBody)


def read(algorithm: algomesh.Algorithm[Any, Any], value: Any) -> Any:
    return algorithm.signature.read(*content.encode(value))


def test_a_decorated_function_stays_a_plain_callable() -> None:
    assert clean("a   b") == "a b"
    assert clean.__name__ == "clean"


def test_a_decorated_class_is_loaded_once_at_its_first_call() -> None:
    CounterBody.loads = 0

    assert Counter(Order("a", 1)) == 11
    assert Counter(Order("a", 2)) == 12
    assert CounterBody.loads == 1


def test_the_manifest_says_what_the_decorator_says() -> None:
    manifest = clean.manifest("m:clean", ["numpy>=2"])

    assert (manifest.owner, manifest.name, manifest.version) == ("demo", "clean", "1.2.0")
    assert manifest.description == "Fold spaces."
    assert manifest.options.memory_bytes == 2 * 2**30
    assert manifest.options.attempts == 1
    assert manifest.options.idle_s == 120
    assert json.loads(manifest.input_schema) == {"type": "string"}


def test_input_that_does_not_fit_is_refused_with_its_path() -> None:
    with pytest.raises(BadInput, match=r"\$\.count"):
        read(Counter, {"name": "x", "count": "many"})
    with pytest.raises(BadInput, match="text is wanted"):
        read(clean, 42)
    with pytest.raises(BadInput, match="missing required field"):
        read(Counter, {"name": "x"})


def test_input_becomes_what_the_annotation_says() -> None:
    @algomesh.algorithm("demo/array", version="0.1.0")
    def array(values: np.ndarray) -> float:
        return float(values.sum())

    assert read(Counter, {"name": "x", "count": 3}) == Order("x", 3)
    assert read(array, [1.5, 2.5]).dtype == np.float32
    with pytest.raises(BadInput, match="an array is wanted"):
        read(array, "text")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gpu": 1.5}, "share of one GPU"),
        ({"gpu": -1}, "share of one GPU"),
        ({"memory": "2 bananas"}, "memory"),
        ({"concurrency": 0}, "concurrency"),
        ({"timeout": "soon"}, "timeout"),
        ({"timeout": 0}, "timeout"),
        ({"max_instances": 1, "min_instances": 2}, "max_instances"),
        ({"retry": 0}, "retry"),
        ({"calls": "text/clean"}, "list of texts"),
        ({"calls": ["nonsense"]}, "not a reference"),
    ],
)
def test_an_option_out_of_bounds_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        algomesh.algorithm("a/b", version="1.0.0", **options)


@pytest.mark.parametrize(
    ("name", "version"), [("clean", "1.0.0"), ("a/b", "1.0"), ("a/b/1.0.0", "1.0.0"), ("a/é", "1.0.0")]
)
def test_a_name_or_version_that_is_none_is_refused(name: str, version: str) -> None:
    with pytest.raises(BadReference):
        algomesh.algorithm(name, version=version)


def test_a_function_of_two_arguments_is_no_algorithm() -> None:
    def two(a: int, b: int) -> int:
        return a + b

    with pytest.raises(TypeError, match="takes 2 arguments"):
        algomesh.algorithm("a/b", version="1.0.0")(two)


def test_a_class_without_apply_is_no_algorithm() -> None:
    class Nothing:
        pass

    with pytest.raises(TypeError, match="apply"):
        algomesh.algorithm("a/b", version="1.0.0")(Nothing)


def test_sizes_and_durations_are_read() -> None:
    assert parse_memory("512Mi") == 512 * 2**20
    assert parse_memory("1.5G") == 1_500_000_000
    assert parse_duration("timeout", "250ms") == 0.25
    assert parse_duration("timeout", "2h") == 7200


def test_the_public_face_is_what_it_is() -> None:
    assert sorted(algomesh.__all__) == [
        "Algorithm",
        "AlgorithmError",
        "Batch",
        "Client",
        "MeshError",
        "Pipeline",
        "Response",
        "algorithm",
        "all",
        "client",
        "connect",
        "current",
        "stage",
    ]


def test_outside_the_mesh_there_is_a_run_all_the_same() -> None:
    assert algomesh.current().run == "local"
    assert algomesh.current().remaining_s == float("inf")
