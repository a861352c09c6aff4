"""What deploy/compose's keeper starts again: what was killed, never what was asked to stop."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[2] / "deploy" / "compose" / "image" / "keeper.py"


@pytest.fixture
def keeper() -> ModuleType:
    spec = importlib.util.spec_from_file_location("keeper", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def event(action: str, **attributes: str) -> dict[str, Any]:
    return {"Action": action, "Actor": {"ID": "abc", "Attributes": attributes}}


@pytest.mark.parametrize(
    ("events", "is_started"),
    [
        ([event("kill", signal="9"), event("die", exitCode="137")], True),
        ([event("die", exitCode="137")], True),
        ([event("kill", signal="15"), event("die", exitCode="0")], False),
        ([event("kill", signal="15"), event("kill", signal="9"), event("die", exitCode="137")], False),
        ([event("kill", signal="2"), event("kill", signal="9"), event("die", exitCode="137")], False),
        ([event("die", exitCode="1")], False),
    ],
    ids=["killed", "killed by the kernel", "stopped", "stopped late", "interrupted late", "failed"],
)
def test_what_was_killed_is_started_and_what_was_asked_to_stop_is_not(
    keeper: ModuleType, monkeypatch: pytest.MonkeyPatch, events: list[dict[str, Any]], is_started: bool
) -> None:
    started: list[str] = []
    monkeypatch.setattr(keeper, "start", lambda container, _: started.append(container))
    asked: dict[str, float] = {}

    for each in events:
        keeper.act(each, asked)

    assert started == (["abc"] if is_started else [])
