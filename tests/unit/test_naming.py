"""Pipelines with a name: from Python and from JSON, alike."""

import json

import pytest

import algomesh
from algomesh.errors import BadInput, BadReference
from algomesh.naming import read_named
from algomesh.pipeline import Pipeline, stage


@algomesh.algorithm("naming/upper", version="1.0.0")
def upper(text: str) -> str:
    return text.upper()


@algomesh.algorithm("naming/words", version="1.0.0")
def words(text: str) -> list[str]:
    return text.split()


def test_a_named_pipeline_runs_composes_and_describes_itself_as_what_it_is_made_of() -> None:
    named = algomesh.named("Naming/Loud", upper | words, version="1.2.0", description=" Loud words ")

    assert named.local("a b") == ["A", "B"]
    assert (named | stage("x/y")).to_json() == ((upper | words) | stage("x/y")).to_json()
    manifest = named.manifest()
    assert (manifest.owner, manifest.name, manifest.version) == ("naming", "loud", "1.2.0")
    assert (manifest.entry, manifest.description) == ("", "Loud words")
    assert (manifest.takes, manifest.gives) == ("text", "json:array[text]")
    assert Pipeline.from_json(manifest.pipeline) == (upper | words)


def test_json_says_the_same_as_python() -> None:
    pipeline = stage("text/clean") | (stage("text/topics") & "text/sentiment")
    document = {
        "name": "text/judge",
        "version": "1.0.0",
        "description": "Judges",
        "pipeline": json.loads(pipeline.to_json()),
    }

    from_json = read_named(json.dumps(document).encode())

    assert (
        from_json.manifest() == algomesh.named("text/judge", pipeline, version="1.0.0", description="Judges").manifest()
    )


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("judge", "1.0.0"),
        ("text/judge/1.0.0", "1.0.0"),
        ("text/judge", "1"),
        ("text/judge", "latest"),
        ("a/>", "1.0.0"),
    ],
)
def test_a_name_or_a_version_that_is_none_is_refused(name: str, version: str) -> None:
    with pytest.raises(BadReference):
        algomesh.named(name, stage("a/b"), version=version)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{}", b"\xff", b"[" * 5_000, b'{"name": "a/b", "version": "1.0.0"}',
        b'{"name": "a/b", "version": "1.0.0", "pipeline": {"kind": "stage"}}',
        b'{"name": "a/b", "version": "1.0.0", "pipeline": {"kind": "stage", "reference": "a/b"}, "extra": 1}',
        b'{"name": "a/b", "version": 1, "pipeline": {"kind": "stage", "reference": "a/b"}}',
    ],
)  # fmt: skip
def test_json_that_is_no_named_pipeline_is_refused(data: bytes) -> None:
    with pytest.raises(BadInput):
        read_named(data)
