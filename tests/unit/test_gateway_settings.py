"""The gateway's settings."""

from pathlib import Path

import pytest

from algomesh_services.environment import BadSetting
from algomesh_services.gateway.service import Address
from algomesh_services.gateway.settings import Settings


def test_settings_come_from_the_environment() -> None:
    settings = Settings.from_environment(
        {
            "ALGOMESH_NATS": "nats://10.0.0.1:4222",
            "ALGOMESH_STATE": "/state",
            "ALGOMESH_GATEWAY_HOST": "0.0.0.0",
            "ALGOMESH_GATEWAY_PORT": "0",
        }
    )

    assert (settings.nats, settings.host, settings.port) == ("nats://10.0.0.1:4222", "0.0.0.0", 0)
    assert settings.address_file == Path("/state/run/gateway.json")


def test_only_the_state_directory_must_be_given() -> None:
    settings = Settings.from_environment({"ALGOMESH_STATE": "/state"})

    assert (settings.host, settings.port) == ("127.0.0.1", 8080)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"ALGOMESH_STATE": "/s", "ALGOMESH_GATEWAY_PORT": "http"},
        {"ALGOMESH_STATE": "/s", "ALGOMESH_GATEWAY_PORT": "70000"},
        {"ALGOMESH_STATE": "/s", "ALGOMESH_GATEWAY_PORT": "-1"},
        {"ALGOMESH_STATE": "/s", "ALGOMESH_GRACE_S": "long"},
        {"ALGOMESH_STATE": "/s", "ALGOMESH_GRACE_S": "nan"},
    ],
)
def test_a_setting_that_is_none_is_named(environment: dict[str, str]) -> None:
    with pytest.raises(BadSetting, match="ALGOMESH_"):
        Settings.from_environment(environment)


def test_an_address_is_a_url_also_for_ipv6() -> None:
    assert Address("127.0.0.1", 8080).url == "http://127.0.0.1:8080"
    assert Address("::1", 8080).url == "http://[::1]:8080"


def test_the_largest_input_is_a_setting() -> None:
    settings = Settings.from_environment({"ALGOMESH_STATE": "/state", "ALGOMESH_GATEWAY_BODY_BYTES": "1000"})

    assert settings.body_bytes == 1000
    for wrong in ("0", "-1", "many", "9999999999"):
        with pytest.raises(BadSetting, match="BODY_BYTES"):
            Settings.from_environment({"ALGOMESH_STATE": "/state", "ALGOMESH_GATEWAY_BODY_BYTES": wrong})
