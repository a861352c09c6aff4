"""The ledger's settings."""

import pytest

from algomesh_services.environment import BadSetting
from algomesh_services.ledger.settings import Settings

NEEDED = {"ALGOMESH_NATS": "nats://h:1", "ALGOMESH_POSTGRES": "postgresql://h/d", "ALGOMESH_STATE": "/state"}


def test_settings_come_from_the_environment() -> None:
    settings = Settings.from_environment(NEEDED | {"ALGOMESH_KEEP_DAYS": "7.5"})

    assert (settings.nats, settings.postgres, settings.keep_days) == ("nats://h:1", "postgresql://h/d", 7.5)


@pytest.mark.parametrize("missing", list(NEEDED))
def test_a_missing_setting_is_named(missing: str) -> None:
    with pytest.raises(BadSetting, match=missing):
        Settings.from_environment({name: value for name, value in NEEDED.items() if name != missing})


@pytest.mark.parametrize("days", ["0", "-1", "nan", "inf", "long"])
def test_days_to_keep_must_be_a_number_above_0(days: str) -> None:
    with pytest.raises(BadSetting, match="ALGOMESH_KEEP_DAYS"):
        Settings.from_environment(NEEDED | {"ALGOMESH_KEEP_DAYS": days})
