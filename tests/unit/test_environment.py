"""Settings as they are read from an environment, and the sentences that say what is wrong with it."""

import traceback
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import pytest
from msgspec import Meta, convert

from algomesh_services.environment import BadSetting, Variable, read
from algomesh_services.gateway.settings import Settings as GatewaySettings
from algomesh_services.launcher.settings import DockerSettings, GivenCapacity
from algomesh_services.launcher.settings import Settings as LauncherSettings
from algomesh_services.ledger.settings import Settings as LedgerSettings
from algomesh_services.prewarmer.settings import Settings as PrewarmerSettings
from algomesh_services.registry.settings import Settings as RegistrySettings

OURS: tuple[Any, ...] = (
    GatewaySettings,
    LauncherSettings,
    DockerSettings,
    GivenCapacity,
    LedgerSettings,
    PrewarmerSettings,
    RegistrySettings,
)


def words(text: str) -> list[str]:
    if "!" in text:
        raise ValueError(f"{text!r} shouts")
    return text.split()


@dataclass(frozen=True, kw_only=True)
class Settings:
    name: Annotated[str, Variable("M_NAME", "how it is called")]
    place: Annotated[Path, Variable("M_PLACE", "where it is")] = Path("/default")
    count: Annotated[int, Variable("M_COUNT", "how many there are"), Meta(ge=1, le=1_000_000)] = 3
    wait_s: Annotated[float, Variable("M_WAIT_S", "how long it waits"), Meta(gt=0, le=60)] = 1.5
    mode: Annotated[Literal["slow", "fast"], Variable("M_MODE", "how it goes")] = "slow"
    parts: Annotated[tuple[str, ...], Variable("M_PARTS", "what it has")] = ("whole",)
    worth: Annotated[
        Mapping[str, Annotated[float, Meta(ge=0, le=9)]],
        Variable("M_WORTH", "what it is worth", lambda text: dict(part.split("=") for part in text.split(","))),
    ] = field(default_factory=dict)
    said: Annotated[list[str], Variable("M_SAID", "what it says", words)] = field(default_factory=list)
    pin: Annotated[int, Variable("M_PIN", "what opens it", is_secret=True), Meta(ge=0, le=9999)] = 0
    word: Annotated[list[str], Variable("M_WORD", "what opens it too", words, is_secret=True)] = field(
        default_factory=list
    )
    unread: int = 7


def settings(**environment: str) -> Settings:
    return read(Settings, {"M_NAME": "it", **environment}, program="machine")


def test_what_is_not_set_has_its_default() -> None:
    assert settings() == Settings(name="it")


def test_each_type_is_read_from_its_text() -> None:
    found = settings(
        M_PLACE="/there", M_COUNT="12", M_WAIT_S=" 2.5 ", M_MODE="fast", M_PARTS="b, a,,b", M_WORTH="x=1,y=2.5"
    )

    assert (found.place, found.count, found.wait_s, found.mode) == (Path("/there"), 12, 2.5, "fast")
    assert (found.parts, found.worth) == (("b", "a"), {"x": 1.0, "y": 2.5})


def test_a_place_is_absolute() -> None:
    assert settings(M_PLACE="below").place == Path.cwd() / "below"


def test_a_whole_number_may_be_written_short() -> None:
    assert settings(M_COUNT="1e3").count == 1000


@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_variable_counts_as_not_set(blank: str) -> None:
    assert settings(M_COUNT=blank, M_PLACE=blank, M_WORTH=blank) == settings()
    with pytest.raises(BadSetting, match="M_NAME"):
        settings(M_NAME=blank)


def test_a_list_may_be_set_to_nothing() -> None:
    assert settings(M_PARTS="").parts == ()


def test_a_field_without_a_variable_is_not_read() -> None:
    assert settings(unread="8", UNREAD="8").unread == 7


def test_what_is_found_out_first_gives_way_to_the_environment() -> None:
    found = read(Settings, {"M_COUNT": "5"}, program="machine", defaults={"name": "found", "count": 4, "unread": 9})

    assert (found.name, found.count, found.unread) == ("found", 5, 9)


def test_all_that_is_missing_is_named_and_explained_at_once() -> None:
    with pytest.raises(BadSetting) as said:
        read(RegistrySettings, {"ALGOMESH_STATE": "/s"}, program="registry")

    assert str(said.value) == (
        "set ALGOMESH_NATS and ALGOMESH_POSTGRES in the environment of the registry: "
        "ALGOMESH_NATS is the address of NATS, nats://HOST:PORT; "
        "ALGOMESH_POSTGRES is the DSN of PostgreSQL, postgresql://USER@HOST/DATABASE"
    )


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("M_COUNT", "0", "M_COUNT='0' is not a whole number from 1 to 1000000 (how many there are)"),
        ("M_COUNT", "1.5", "M_COUNT='1.5' is not a whole number from 1 to 1000000 (how many there are)"),
        ("M_COUNT", "many", "M_COUNT='many' is not a whole number from 1 to 1000000 (how many there are)"),
        ("M_WAIT_S", "0", "M_WAIT_S='0' is not a number above 0, at most 60 (how long it waits)"),
        ("M_WAIT_S", "nan", "M_WAIT_S='nan' is not a number above 0, at most 60 (how long it waits)"),
        ("M_WAIT_S", "inf", "M_WAIT_S='inf' is not a number above 0, at most 60 (how long it waits)"),
        ("M_MODE", "jumpy", "M_MODE='jumpy' is none of slow, fast (how it goes)"),
        ("M_WORTH", "x=10", "M_WORTH='x=10' is wrong in a part that is not a number from 0 to 9 (what it is worth)"),
        ("M_SAID", "hey!", "M_SAID: 'hey!' shouts (what it says)"),
    ],
)
def test_what_is_wrong_is_said_with_what_is_allowed(name: str, text: str, sentence: str) -> None:
    with pytest.raises(BadSetting) as said:
        settings(**{name: text})

    assert str(said.value) == sentence


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("M_PIN", "s3cret", "M_PIN is not a whole number from 0 to 9999 (what opens it)"),
        ("M_WORD", "s3cret!", "M_WORD: cannot be read (what opens it too)"),
    ],
)
def test_a_secret_is_in_no_error(name: str, text: str, sentence: str) -> None:
    with pytest.raises(BadSetting) as said:
        settings(**{name: text})

    assert str(said.value) == sentence
    assert "s3cret" not in "".join(traceback.format_exception(said.value))


@pytest.mark.parametrize("program", [LedgerSettings, PrewarmerSettings, RegistrySettings])
def test_a_password_is_not_in_what_settings_look_like(program: Any) -> None:
    environment = {
        "ALGOMESH_NATS": "nats://h:1",
        "ALGOMESH_STATE": "/s",
        "ALGOMESH_POSTGRES": "postgresql://u:s3cret@h",
    }

    assert "s3cret" not in repr(program.from_environment(environment))


@pytest.mark.parametrize("ours", OURS)
def test_every_number_that_a_program_reads_is_bounded_and_has_a_default_within(ours: Any) -> None:
    hints = get_type_hints(ours, include_extras=True)
    given = {
        each.name: each for each in fields(ours) if any(isinstance(it, Variable) for it in get_args(hints[each.name]))
    }

    for name, setting in given.items():
        kind, *extras = get_args(hints[name])
        if kind in {int, float}:
            assert any(isinstance(each, Meta) and each.le is not None for each in extras), name
        if setting.default is not MISSING:
            assert convert(setting.default, hints[name]) == setting.default
