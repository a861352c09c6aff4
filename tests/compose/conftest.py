"""The mesh in containers that all tests here share, in the order they are written; nothing is collected elsewhere."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.compose.engine import Mesh, drop_images, say

# Only `make compose-test` sets it: an engine is needed, and ten minutes.
collect_ignore_glob = [] if os.environ.get("ALGOMESH_COMPOSE_TEST") else ["test_*.py"]

_STARTED: list[Mesh] = []


@pytest.fixture(scope="session")
def mesh() -> Iterator[Mesh]:
    """Built and up; taken down in the end, whatever happened."""
    mesh = Mesh()
    _STARTED.append(mesh)
    try:
        mesh.build()
        mesh.up()
        yield mesh
    finally:
        mesh.remove()
        drop_images("b")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Say what begins to fail where: the containers are gone when the report is read."""
    report = yield
    if report.failed and _STARTED:
        _STARTED[-1].show_logs()
    elif report.when == "call":
        say(f"{item.name}: {report.outcome} after {report.duration:.0f} s")
    return report
