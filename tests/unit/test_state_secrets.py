"""Pure parts of the state directory and its errors."""

from pathlib import Path

import pytest

from algomesh_services.local.errors import StateFull, StateInUse
from algomesh_services.local.state import StateDirectory, default_state_path


def test_the_default_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")

    assert default_state_path() == Path("/somewhere/algomesh")
    assert StateDirectory().path == Path("/somewhere/algomesh")


def test_a_path_is_made_absolute_and_a_tilde_is_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")

    assert StateDirectory("~/mesh").path == Path("/home/ada/mesh")
    assert StateDirectory("mesh").path.is_absolute()


def test_errors_say_who_and_what_to_do() -> None:
    assert str(StateInUse(Path("/s"), 12)) == (
        "`algomesh up` (pid 12) already uses /s; stop it or choose another directory with --state"
    )
    assert "has 3 MiB left and the mesh needs 96 MiB" in str(
        StateFull(Path("/s"), free_bytes=3 << 20, needed_bytes=96 << 20)
    )
