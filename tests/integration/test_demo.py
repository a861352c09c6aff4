"""`make demo`, as a stranger runs it: it ends by itself, says what it measured, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conditions import processes_with, until
from tests.integration.up_fixtures import alive, descendants, environment

pytestmark = pytest.mark.integration

POSTS = """\
1\t3.1\tI LOVE this place, the food is wonderful!!! :)
2\t-3.0\tWorst service ever. I hate waiting, this was horrible.
3\t0.1\tThe bus leaves at 7:40 from https://example.org/stop
4\t2.0\tsuch a great day with my friends &lt;3
5\t-2.2\tso sad and tired today, everything went wrong
"""


@pytest.mark.timeout(300)
def test_the_demo_ends_with_its_figures_and_leaves_nothing(tmp_path: Path) -> None:
    posts = tmp_path / "posts.tsv"
    posts.write_text(POSTS)
    folder = tmp_path / "tmp"
    folder.mkdir()

    result = subprocess.run(
        [sys.executable, "-m", "algomesh_services.demo", "--posts", str(posts)],
        capture_output=True, text=True, check=False, timeout=280, env=environment(TMPDIR=str(folder)),
    )  # fmt: skip

    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["posts"] == 5
    assert set(figures["versions"]) == {"1.0.0", "2.0.0"}
    for version in figures["versions"].values():
        assert version["cold_ms"] > version["warm_ms"] > 0
        assert version["posts_per_s"] > 0
        assert version["correlation"] > 0.5
    for said in ("No instance runs", "1st call", "2nd call", "text/lemmatize 1.0.0", "posts/s", "people"):
        assert said in result.stdout
    assert max(map(len, result.stdout.splitlines()[:-1])) <= 80
    assert os.listdir(folder) == []  # noqa: PTH208
    assert processes_with(str(folder)) == []


def test_posts_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "algomesh_services.demo", "--posts", str(tmp_path / "none")],
        capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip

    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "cannot be read" in result.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
async def test_a_demo_that_is_cut_short_leaves_no_process(tmp_path: Path, signum: signal.Signals) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "algomesh_services.demo"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(TMPDIR=str(folder)),
    ) as demo:  # fmt: skip
        assert demo.stdout is not None
        while line := demo.stdout.readline():
            if line.startswith("2"):  # the mesh is up, and something is being published
                break
        family = descendants(demo.pid)
        assert len(family) > 6

        demo.send_signal(signum)
        _, errors = demo.communicate(timeout=20)

    assert errors == ""
    assert demo.returncode == (130 if signum is signal.SIGINT else -signal.SIGKILL)
    await until(lambda: not alive(family), 15)
    await until(lambda: not processes_with(str(folder)), 15)
    if signum is signal.SIGINT:
        assert os.listdir(folder) == []  # noqa: PTH208
