"""The registry's settings."""

from pathlib import Path

import pytest

from algomesh_services.environment import BadSetting
from algomesh_services.registry.settings import Settings

NEEDED = {"ALGOMESH_NATS": "nats://h:1", "ALGOMESH_POSTGRES": "postgresql://h/d", "ALGOMESH_STATE": "/state"}


def test_settings_come_from_the_environment() -> None:
    settings = Settings.from_environment(NEEDED | {"ALGOMESH_SESSION_S": "60", "ALGOMESH_GRACE_S": "0"})

    assert (settings.nats, settings.postgres, settings.session_s) == ("nats://h:1", "postgresql://h/d", 60.0)
    assert (settings.grace_s, settings.archives) == (0.0, Path("/state/archives"))


@pytest.mark.parametrize("name", ["ALGOMESH_SESSION_S", "ALGOMESH_GRACE_S"])
@pytest.mark.parametrize("text", ["-1", "nan", "inf", "long"])
def test_what_is_no_time_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(BadSetting, match=f"{name}='{text}'"):
        Settings.from_environment(NEEDED | {name: text})
