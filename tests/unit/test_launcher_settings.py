"""What the launcher reads from its environment."""

import pytest

from algomesh_services.environment import BadSetting
from algomesh_services.launcher.settings import Settings, new_launcher_id

GIVEN = {
    "ALGOMESH_NATS": "nats://127.0.0.1:5000",
    "ALGOMESH_STATE": "/state",
    "ALGOMESH_GPUS": "0, 1,0",
    "ALGOMESH_MEMORY_BYTES": "1000000000",
    "ALGOMESH_START_TIMEOUT_S": "12.5",
    "ALGOMESH_MAX_INSTANCES": "7",
}


def test_settings_come_from_the_environment() -> None:
    settings = Settings.from_environment(GIVEN)

    assert settings.nats_url == "nats://127.0.0.1:5000"
    assert str(settings.versions) == "/state/versions"
    assert settings.capacity.gpus == ("0", "1")
    assert settings.capacity.memory_bytes == 1_000_000_000
    assert settings.capacity.max_instances == 7
    assert settings.start_timeout_s == 12.5


def test_the_machine_is_asked_for_what_is_not_given() -> None:
    settings = Settings.from_environment({"ALGOMESH_STATE": "/state"})

    assert settings.capacity.memory_bytes > 0
    assert settings.threads >= 1
    assert settings.start_timeout_s == 300


@pytest.mark.parametrize("value", ["many", "-1", "0", "nan", "inf"])
def test_what_is_not_a_number_above_zero_is_refused_by_name(value: str) -> None:
    with pytest.raises(BadSetting, match="ALGOMESH_MAX_INSTANCES"):
        Settings.from_environment(GIVEN | {"ALGOMESH_MAX_INSTANCES": value})


def test_a_missing_state_directory_is_refused_by_name() -> None:
    with pytest.raises(BadSetting, match="ALGOMESH_STATE"):
        Settings.from_environment({})


def test_every_life_of_a_launcher_has_an_id_of_its_own() -> None:
    ids = {new_launcher_id() for _ in range(100)}

    assert len(ids) == 100
    assert all((len(id_) == 8 and id_.isalnum() and id_.islower()) or id_.isdigit() for id_ in ids)


def test_the_failure_of_a_start_survives_the_log() -> None:
    from algomesh_broker.boot import StartFailure, failure_line, find_failure

    line = failure_line("load_failed", 'ValueError: "x"\nand more')

    assert "\n" not in line
    assert find_failure(["before", f"1763771000.123 - {line}", "after"]) == StartFailure(
        code="load_failed", message='ValueError: "x"\nand more'
    )
    assert find_failure(["ALGOMESH-FAILED {broken", "nothing"]) is None
