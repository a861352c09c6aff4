"""What the command line makes of its words, before any mesh is asked."""

import pytest
import typer

from algomesh.content import Content
from algomesh.errors import BadInput
from algomesh_services.cli.calling import make_content
from algomesh_services.cli.hidden_argv import read_secrets, separate
from algomesh_services.cli.keys import name_and_scopes


@pytest.mark.parametrize(
    ("arguments", "kept", "secrets"),
    [
        (["up", "--key", "K", "--port", "0"], ["up", "--port", "0"], {"--key": "K"}),
        (["up", "--port", "0", "--key=a=b"], ["up", "--port", "0"], {"--key": "a=b"}),
        (["up", "--postgres", "postgresql://u:p@h/d"], ["up"], {"--postgres": "postgresql://u:p@h/d"}),
        (["up", "--postgres=postgresql://h/d?password=p"], ["up"], {"--postgres": "postgresql://h/d?password=p"}),
        (["up", "--postgres", "postgresql://u@h/d"], ["up", "--postgres", "postgresql://u@h/d"], {}),
        (["up", "--key"], ["up", "--key"], {}),
        (["call", "a/b", "--key", "K"], ["call", "a/b", "--key", "K"], {}),
        (["--help"], ["--help"], {}),
        ([], [], {}),
    ],
)
def test_secrets_of_up_are_taken_out_of_the_command_line(
    arguments: list[str], kept: list[str], secrets: dict[str, str]
) -> None:
    assert separate(arguments) == (kept, secrets)


def test_a_descriptor_that_holds_no_secrets_is_no_secret() -> None:
    assert read_secrets(None) == {}
    assert read_secrets(987_654) == {}


@pytest.mark.parametrize(
    ("words", "may", "expected"),
    [
        (["ann", "publish:me/*"], ["call:text/*"], ("ann", ["call:text/*", "publish:me/*"])),
        (["publish:me/*", "ann"], ["call:text/*"], ("ann", ["call:text/*", "publish:me/*"])),
        (["ann", "observe"], ["call:*"], ("ann", ["call:*", "observe"])),
        (["ann"], ["admin"], ("ann", ["admin"])),
    ],
)
def test_scopes_may_follow_one_another_wherever_the_name_stands(
    words: list[str], may: list[str], expected: tuple[str, list[str]]
) -> None:
    assert name_and_scopes(words, may) == expected


@pytest.mark.parametrize(
    ("words", "may", "said"),
    [
        (["ann"], [], "--may"),
        (["ann", "bob"], ["observe"], "several names"),
        (["call:a/b"], ["observe"], "a name"),
        (["ann"], ["call:everything"], "pattern"),
        (["ann"], ["fly"], "a scope is"),
    ],
)
def test_a_key_without_name_or_scopes_is_a_wrong_command_line(words: list[str], may: list[str], said: str) -> None:
    with pytest.raises(typer.BadParameter) as refused:
        name_and_scopes(words, may)

    assert said in f"{refused.value.message} {refused.value.param_hint}"


def test_input_is_text_unless_it_cannot_be_or_is_said_to_be_something_else() -> None:
    assert make_content(b"[1]", None) == Content("text", "", b"[1]")
    assert make_content(b"\xff\x00", None) == Content("binary", "", b"\xff\x00")
    assert make_content(b"[1]", "json") == Content("json", "", b"[1]")
    assert make_content(b"abc", "binary") == Content("binary", "", b"abc")
    with pytest.raises(BadInput, match="--type binary"):
        make_content(b"\xff", "text")
    with pytest.raises(BadInput, match="not JSON"):
        make_content(b"{", "json")
