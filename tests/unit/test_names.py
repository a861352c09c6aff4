"""Names at the edge: folded, checked, and refused with the form in the sentence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from algomesh_broker.errors import BadName
from algomesh_broker.names import Reference, Version, VersionId, check_alias, check_caller, check_name, nearest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("text/clean", Reference("text", "clean")),
        ("Text/Clean/1.2.0", Reference("text", "clean", "1.2.0")),
        ("algo://text/clean/1", Reference("text", "clean", "1")),
        ("/text/clean/1.2", Reference("text", "clean", "1.2")),
        ("text/clean/latest", Reference("text", "clean")),
        ("  text/clean ", Reference("text", "clean")),
        ("text/clean/Stable", Reference("text", "clean", "stable")),
        ("text/clean/canary-2", Reference("text", "clean", "canary-2")),
    ],
)
def test_a_reference_is_read_as_people_write_it(text: str, expected: Reference) -> None:
    assert Reference.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "/", "clean", "text/", "/clean", "text//clean", "text/clean/", "text/clean/1v", "text/clean/st_able",
     "text/clean/01.0.0",
     "text/clean/1.0.0.0", "text/clean/1.0.0/x", "te.xt/clean", "text/cl*an", "text/>", "text/cle an", "1text/clean",
     "text/clean\x00", "text/\N{LATIN SMALL LETTER A WITH ACUTE}", "text/clean\n/1", "a" * 64 + "/clean",
     "text/clean/1.2.9999999", "http://text/clean"],
)  # fmt: skip
def test_what_is_no_reference_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(BadName, match=r"owner/name|three numbers"):
        Reference.parse(text)


@given(st.text(max_size=80))
def test_no_text_gets_past_the_names_that_a_subject_could_not_hold(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except BadName:
        return
    assert not set(f"{reference.owner}{reference.name}") & set(".*> \t\r\n\x00~")


@pytest.mark.parametrize("text", ["stable", "canary-2", "v1", "s" * 32])
def test_an_alias_is_a_name_of_its_own(text: str) -> None:
    assert check_alias(text) == text
    assert Reference.parse(f"text/clean/{text}").is_alias


@pytest.mark.parametrize(
    "text", ["", "latest", "1", "1.2", "1.2.0", "-a", "Stable", "a.b", "a/b", "s" * 33, "a_b", "*", "a\n"]
)
def test_what_is_no_alias_is_refused(text: str) -> None:
    with pytest.raises(BadName):
        check_alias(text)


def test_versions_and_what_is_newest_are_no_aliases() -> None:
    assert not any(Reference.parse(f"text/clean{end}").is_alias for end in ("", "/1", "/1.2", "/1.2.0", "/latest"))


@pytest.mark.parametrize(
    "text", ["text/clean/stable", "text/clean/latest", "text/clean/1.2", "text/clean", "a/b/c/d", "/"]
)
def test_only_a_whole_version_makes_a_version_id(text: str) -> None:
    with pytest.raises(BadName):
        VersionId.parse(text)


def test_versions_are_ordered_as_numbers() -> None:
    ordered = sorted(map(Version.parse, ("1.10.0", "1.9.0", "1.9.10", "0.99.99")))

    assert [str(version) for version in ordered] == ["0.99.99", "1.9.0", "1.9.10", "1.10.0"]


@pytest.mark.parametrize("text", ["1", "1.2", "1.2.3-rc1", "v1.2.3", "1.2.3.4", "01.2.3", "", "1.2.x", "١.٢.٣"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(BadName, match=r"like 1\.2\.0"):
        Version.parse(text)


def test_a_version_id_has_the_forms_that_subjects_and_consumers_need() -> None:
    version = VersionId.parse("text/clean/1.2.0")

    assert version.tokens == "text.clean.1-2-0"
    assert version.caller == "text~clean"
    assert version.consumer == "text~clean~1-2-0"
    assert str(version) == "text/clean/1.2.0"
    assert VersionId.of_tokens("text", "clean", "1-2-0") == version


@pytest.mark.parametrize("text", ["k~a1b2c3", "text~clean", "platform~registry"])
def test_callers_are_keys_instances_and_programs(text: str) -> None:
    assert check_caller(text) == text


@pytest.mark.parametrize("text", ["", "k~", "k~A", "text", "text~", "~clean", "a~b~c", "text.clean~x", "*", "k~>"])
def test_what_is_no_caller_is_refused(text: str) -> None:
    with pytest.raises(BadName):
        check_caller(text)


def test_a_name_is_refused_within_what_was_written() -> None:
    with pytest.raises(BadName, match="'Nope' in 'text/Nope'"):
        check_name("Nope", "text/Nope")


def test_the_nearest_names_begin_with_the_same_name_of_another_owner() -> None:
    known = ["text/clean", "demo/clean", "demo/count", "image/resize"]

    assert nearest("txt/clean", known)[:2] == ["text/clean", "demo/clean"]
    assert nearest("demo/cuont", known)[0] == "demo/count"
    assert nearest("zzz/qqq", known) == []
