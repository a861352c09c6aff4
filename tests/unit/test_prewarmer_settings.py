from pathlib import Path

import pytest

from algomesh_services.environment import BadSetting
from algomesh_services.prewarmer.settings import Settings

GIVEN = {"ALGOMESH_NATS": "nats://h:1", "ALGOMESH_POSTGRES": "postgresql://h/d", "ALGOMESH_STATE": "/state"}


def test_it_has_defaults() -> None:
    settings = Settings.from_environment(GIVEN)

    assert (settings.latency_value, settings.grace_s) == (5.0, 5.0)
    assert settings.secrets == Path("/state/secrets")


def test_latency_may_be_worth_nothing() -> None:
    assert Settings.from_environment({**GIVEN, "ALGOMESH_LATENCY_VALUE": "0"}).latency_value == 0.0


def test_latency_may_be_worth_differently_by_caller() -> None:
    settings = Settings.from_environment({**GIVEN, "ALGOMESH_LATENCY_VALUES": "k~abc=30, Text/Clean=1,text~count = 0,"})

    assert settings.latency_values == {"k~abc": 30.0, "text~clean": 1.0, "text~count": 0.0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALGOMESH_LATENCY_VALUE", "-1"),
        ("ALGOMESH_LATENCY_VALUE", "much"),
        ("ALGOMESH_LATENCY_VALUE", "nan"),
        ("ALGOMESH_GRACE_S", "0"),
        ("ALGOMESH_LATENCY_VALUES", "k~abc"),
        ("ALGOMESH_LATENCY_VALUES", "abc=1"),
        ("ALGOMESH_LATENCY_VALUES", "k~abc=-1"),
        ("ALGOMESH_LATENCY_VALUES", "k~abc="),
        ("ALGOMESH_LATENCY_VALUES", "k~abc=1,~=2"),
    ],
)
def test_it_names_what_is_wrong(name: str, value: str) -> None:
    with pytest.raises(BadSetting, match=name):
        Settings.from_environment({**GIVEN, name: value})


def test_it_names_what_is_missing() -> None:
    with pytest.raises(BadSetting, match="ALGOMESH_NATS and ALGOMESH_POSTGRES"):
        Settings.from_environment({"ALGOMESH_STATE": "/state"})
