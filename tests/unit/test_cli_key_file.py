"""A command takes its key from a file where the environment names one."""

from pathlib import Path

import pytest

from algomesh.errors import Unauthenticated
from algomesh_services.cli.address import find_address

URL = "nats://127.0.0.1:4222"


def test_the_key_is_what_is_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("am_0123456789_secret\n")

    assert find_address({"ALGOMESH_URL": URL, "ALGOMESH_API_KEY_FILE": str(file)}) == (URL, "am_0123456789_secret")


def test_a_key_in_the_environment_goes_before_the_file() -> None:
    found = find_address({"ALGOMESH_URL": URL, "ALGOMESH_API_KEY": "own", "ALGOMESH_API_KEY_FILE": "/nowhere"})

    assert found.key == "own"


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unauthenticated, match="ALGOMESH_API_KEY_FILE"):
        find_address({"ALGOMESH_URL": URL, "ALGOMESH_API_KEY_FILE": str(tmp_path / "none")})
