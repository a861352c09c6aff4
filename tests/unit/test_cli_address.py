"""Which mesh and which key a command uses."""

import os
from pathlib import Path

import pytest

from algomesh.errors import Unauthenticated, Unreachable
from algomesh_services.cli.address import Address, find_address
from algomesh_services.local.running import RunningMesh

NATS, GATEWAY = "nats://127.0.0.1:4222", "http://127.0.0.1:8080"


def running_in(state: Path, pid: int = 0) -> dict[str, str]:
    (state / "run").mkdir()
    (state / "secrets").mkdir()
    (state / "secrets" / "admin.key").write_text("the-key\n")
    RunningMesh(gateway=GATEWAY, nats=NATS, state=str(state), pid=pid or os.getpid()).write()
    return {"ALGOMESH_STATE": str(state)}


def test_the_environment_decides(tmp_path: Path) -> None:
    environment = {"ALGOMESH_URL": "nats://elsewhere:1", "ALGOMESH_API_KEY": "Simple mine", **running_in(tmp_path)}

    assert find_address(environment) == Address("nats://elsewhere:1", "mine")


@pytest.mark.parametrize(
    ("given", "url"), [({}, NATS), ({"ALGOMESH_URL": NATS}, NATS), ({"ALGOMESH_URL": GATEWAY + "/"}, GATEWAY + "/")]
)
def test_a_mesh_that_runs_here_gives_what_is_missing(tmp_path: Path, given: dict[str, str], url: str) -> None:
    assert find_address({**given, **running_in(tmp_path)}) == Address(url, "the-key")


def test_another_key_for_the_mesh_that_runs_here(tmp_path: Path) -> None:
    assert find_address({"ALGOMESH_API_KEY": "mine", **running_in(tmp_path)}) == Address(NATS, "mine")


def test_its_key_is_not_sent_to_another_mesh(tmp_path: Path) -> None:
    with pytest.raises(Unauthenticated, match="ALGOMESH_API_KEY"):
        find_address({"ALGOMESH_URL": "nats://elsewhere:4222", **running_in(tmp_path)})


def test_one_that_was_killed_does_not_count(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="algomesh up"):
        find_address(running_in(tmp_path, pid=2**22 + 1))


def test_no_mesh_at_all_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="algomesh up"):
        find_address({"ALGOMESH_STATE": str(tmp_path)})
    with pytest.raises(Unauthenticated, match="ALGOMESH_API_KEY"):
        find_address({"ALGOMESH_STATE": str(tmp_path), "ALGOMESH_URL": NATS})
    with pytest.raises(Unreachable, match="ALGOMESH_URL"):
        find_address({"ALGOMESH_STATE": str(tmp_path), "ALGOMESH_API_KEY": "mine"})
