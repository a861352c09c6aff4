"""`make demo-video`, as a stranger runs it, with a small film: it ends by itself and says what it measured."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conditions import processes_with
from tests.integration.up_fixtures import environment

pytestmark = pytest.mark.integration


def demo(*arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "algomesh_services.demo_video", *arguments],
        capture_output=True, text=True, check=False, timeout=280, env=environment(**more),
    )  # fmt: skip


@pytest.mark.timeout(300)
def test_the_demo_ends_with_a_painted_film_and_its_figures(tmp_path: Path) -> None:
    for module in ("av", "torch", "safetensors"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module} of the extra `catalog`")
    folder, output = tmp_path / "tmp", tmp_path / "films"
    folder.mkdir()

    result = demo("--seconds", "2", "--size", "128x72", "--output", str(output), TMPDIR=str(folder))

    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    figures = json.loads(result.stdout.splitlines()[-1])
    assert (figures["pictures"], figures["segments"]) == (24, 2)
    assert figures["first_s"] > figures["mesh_s"] > 0
    assert figures["alone_s"] > 0
    style, content = figures["style_loss"], figures["content_loss"]
    assert style["after"] < style["recoloured"] / 2 < style["before"]
    assert content["before"] == 0
    assert content["after"] < content["another"]
    assert (output / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert {file.name for file in output.iterdir()} == {"film.mp4", "painted.mp4", "sheet.png"}
    for said in ("segment 1 painted", "segment 2 painted", "in one process", "style loss"):
        assert said in result.stdout
    assert os.listdir(folder) == []  # noqa: PTH208
    assert processes_with(str(folder)) == []


@pytest.mark.parametrize("option", [("--size", "8x8"), ("--size", "big"), ("--seconds", "0"), ("--seconds", "nan")])
def test_a_film_that_cannot_be_made_is_refused(option: tuple[str, str]) -> None:
    result = demo(*option)

    assert result.returncode == 2
    assert "write 320x180" in result.stderr or "seconds" in result.stderr
