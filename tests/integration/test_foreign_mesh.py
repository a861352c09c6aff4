"""A mesh with an algorithm in JavaScript in it, and with programs that know nothing of it, served from outside."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import algomesh
from algomesh import errors, stage
from tests.integration.foreign_fixtures import make_project
from tests.integration.up_fixtures import COMMAND, Up, environment

pytestmark = pytest.mark.integration

CATALOG = Path(__file__).parents[2] / "services" / "catalog"
COUNTS = """
import json, os, sys, time
for line in sys.stdin:
    wish = json.loads(line)
    if wish == "die": os._exit(7)
    if wish == "garbage": print("not json", flush=True); continue
    if wish == "sleep": time.sleep(600)
    print(json.dumps({"words": len(wish.split())} if isinstance(wish, str) else wish), flush=True)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("node") / "slugify")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with Up(tmp_path_factory.mktemp("mesh") / "state") as mesh:
        for path in ("text_clean", "demo.py"):
            assert mesh.run("publish", str(CATALOG / path)).returncode == 0
        yield mesh


@pytest.fixture(scope="module")
def client(up: Up) -> Iterator[algomesh.Client]:
    with algomesh.client(up.said["key"], url=up.said["nats"]) as client:
        yield client


class Served:
    """`algomesh serve …` in a terminal of its own."""

    def __init__(self, up: Up, *arguments: str, key: str = "") -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "serve", *arguments],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment(ALGOMESH_URL=up.said["nats"], ALGOMESH_API_KEY=key or up.said["key"]),
            text=True,
        )
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline()

    def __enter__(self) -> "Served":
        assert "serving" in self.said, self.said
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(20)
        assert self.process.stderr is not None
        self.process.stderr.close()

    @property
    def instance(self) -> str:
        return self.said.partition(" as ")[2].partition(";")[0]


def rows(up: Up, algorithm: str) -> list[dict[str, Any]]:
    return [row for row in up.json("ps") if row["algorithm"] == algorithm]


def until(condition: Any, timeout_s: float = 20) -> Any:
    give_up = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < give_up
        time.sleep(0.05)
    return result


@pytest.fixture(scope="module")
def published(up: Up, project: Path) -> None:
    result = up.run("publish", str(project))
    assert result.returncode == 0, result.stderr
    assert "text/slugify/1.0.0" in result.stdout


@pytest.mark.usefixtures("published")
class TestJavaScript:
    def test_it_is_started_by_the_call_that_needs_it(self, client: algomesh.Client, up: Up) -> None:
        response = client.algo("text/slugify").pipe("Grüße, Welt!")

        assert response.result == "gruesse-welt"
        assert response.metadata.cold_start_s > 0
        assert {(row["version"], row["state"]) for row in rows(up, "text/slugify")} == {("1.0.0", "ready")}

    def test_it_is_node_and_can_import_nothing_of_ours(self, client: algomesh.Client, up: Up) -> None:
        client.algo("text/slugify").pipe("x")
        row = rows(up, "text/slugify")[0]
        process = Path(f"/proc/{row['pid']}")

        assert (process / "exe").resolve().name.startswith("node")
        assert b"slugify.js" in (process / "cmdline").read_bytes()
        variables = (process / "environ").read_bytes().split(b"\0")
        assert not [each for each in variables if each.startswith((b"PYTHON", b"ALGOMESH", b"VIRTUAL_ENV"))]
        assert not any(b"ai_" in each for each in [*variables, (process / "cmdline").read_bytes()])
        libraries = (process / "maps").read_text()
        assert "libpython" not in libraries
        assert "site-packages" not in libraries

    def test_it_is_a_stage_between_two_python_ones(self, client: algomesh.Client) -> None:
        pipeline = stage("text/clean") | stage("text/slugify") | stage("demo/tokenize")

        assert client.algo(pipeline).pipe("Tom &amp; Ann &lt;3 https://example.org").result == ["tom-and-ann-3"]

    def test_warm_it_is_called_often_and_answers_each_call(self, client: algomesh.Client) -> None:
        pipeline = client.algo(stage("text/clean") | stage("text/slugify") | stage("demo/echo"))
        runs = [pipeline.start(f"Post No. {number}") for number in range(100)]

        assert [run.wait(30).result for run in runs] == [f"post-no-{number}" for number in range(100)]

    def test_its_errors_are_typed(self, client: algomesh.Client) -> None:
        with pytest.raises(errors.BadInput, match="takes text") as raised:
            client.algo("text/slugify").pipe([1, 2])

        assert raised.value.stage == "text/slugify/1.0.0"

    def test_stopped_it_drains_and_comes_back_for_the_next_call(self, client: algomesh.Client, up: Up) -> None:
        client.algo("text/slugify").pipe("x")
        before = {row["pid"] for row in rows(up, "text/slugify")}

        assert up.run("stop", "text/slugify").returncode == 0
        until(lambda: not rows(up, "text/slugify"))

        assert client.algo("text/slugify").pipe("Back again").result == "back-again"
        assert before.isdisjoint(row["pid"] for row in rows(up, "text/slugify"))

    def test_killed_under_load_no_call_is_lost(self, client: algomesh.Client, up: Up) -> None:
        client.algo("text/slugify").pipe("x")
        pids = [row["pid"] for row in rows(up, "text/slugify")]
        runs = [client.algo("text/slugify").start(f"Post {number}") for number in range(50)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

        assert [run.wait(60).result for run in runs] == [f"post-{number}" for number in range(50)]

    def test_its_runs_and_its_log_are_known(self, client: algomesh.Client, up: Up) -> None:
        client.algo("text/slugify").pipe("x")

        until(lambda: [run for run in up.json("runs", "--algorithm", "text/slugify") if run["state"] == "succeeded"])
        assert "ready after" in up.run("logs", "text/slugify").stdout

    def test_a_start_that_fails_says_why(self, client: algomesh.Client, up: Up, tmp_path: Path) -> None:
        (tmp_path / "algomesh.toml").write_text(
            'name = "me/broken"\nversion = "1.0.0"\ncommand = ["no-such-program"]\n[options]\nretry = false\n'
        )
        assert up.run("publish", str(tmp_path)).returncode == 0

        with pytest.raises(errors.LoadFailed, match="no-such-program"):
            client.algo("me/broken").pipe("x")

    def test_a_folder_that_is_described_wrongly_is_refused_in_a_line(self, up: Up, tmp_path: Path) -> None:
        (tmp_path / "algomesh.toml").write_text('name = "me/broken"\nversion = "1.0.0"\ncommand = "node x.js"\n')

        result = up.run("publish", str(tmp_path))

        assert result.returncode == 1
        assert result.stderr.count("\n") == 1
        assert "should be a list of texts" in result.stderr


class TestExec:
    def test_lines_of_json_go_in_and_out(self, client: algomesh.Client, up: Up, tmp_path: Path) -> None:
        with self.serve(up, tmp_path, "me/counts/1.0.0") as served:
            assert client.algo("me/counts").pipe("one two three").result == {"words": 3}
            assert client.algo("me/counts").pipe([1, None]).result == [1, None]
            (row,) = rows(up, "me/counts")

        assert row["instance"] == served.instance
        assert row["reason"].startswith("attached by k~")
        assert served.process.returncode == 0

    def test_it_is_a_stage_of_a_pipeline(self, client: algomesh.Client, up: Up, tmp_path: Path) -> None:
        with self.serve(up, tmp_path, "me/staged/1.0.0"):
            pipeline = stage("text/clean") | stage("me/staged") | stage("demo/echo")

            assert client.algo(pipeline).pipe("one &amp; two").result == {"words": 3}

    def test_what_goes_wrong_is_typed_and_the_next_call_works(
        self, client: algomesh.Client, up: Up, tmp_path: Path
    ) -> None:
        with self.serve(up, tmp_path, "me/wrong/1.0.0", "--timeout", "2"):
            algo = client.algo("me/wrong")
            with pytest.raises(errors.AlgorithmError, match="ended with exit code 7"):
                algo.pipe("die")
            with pytest.raises(errors.BadOutput, match="no JSON"):
                algo.pipe("garbage")
            with pytest.raises(errors.RunTimeout):
                algo.pipe("sleep")
            with pytest.raises(errors.DeadlineExceeded):
                algo.pipe("sleep", timeout=0.5)
            run = algo.start("sleep")
            until(lambda: rows(up, "me/wrong")[0]["load"] == 1)
            run.cancel()

            assert algo.pipe("one two").result == {"words": 2}

    def test_per_call_the_program_runs_once_for_each(self, client: algomesh.Client, up: Up) -> None:
        with Served(up, "--exec", "tr a-z A-Z", "--per-call", "--as", "me/shout/1.0.0", "--concurrency", "4"):
            runs = [client.algo("me/shout").start(f"post {number}") for number in range(12)]

            assert [run.wait(30).result for run in runs] == [f"POST {number}" for number in range(12)]

    def test_ctrl_c_lets_runs_finish(self, client: algomesh.Client, up: Up) -> None:
        with Served(up, "--exec", "sh -c 'sleep 1; echo done'", "--per-call", "--as", "me/slow/1.0.0") as served:
            run = client.algo("me/slow").start("x")
            until(lambda: rows(up, "me/slow")[0]["load"] == 1)
            served.process.send_signal(signal.SIGINT)

            assert run.wait(20).result == "done"
            assert served.process.wait(20) == 0
        until(lambda: not rows(up, "me/slow"))

    def test_without_anybody_who_runs_it_callers_are_told_at_once(
        self, client: algomesh.Client, up: Up, tmp_path: Path
    ) -> None:
        with self.serve(up, tmp_path, "me/gone/1.0.0"):
            client.algo("me/gone").pipe("x")
        until(lambda: not rows(up, "me/gone"))

        with pytest.raises(errors.NoCapacity, match="algomesh serve --exec"):
            client.algo("me/gone").pipe("x", timeout=20)
        with self.serve(up, tmp_path, "me/gone/1.0.0"):
            assert until(lambda: answered(client, "me/gone", "x y")) == {"words": 2}

    def test_killed_its_death_is_told_and_its_program_ends_with_it(
        self, client: algomesh.Client, up: Up, tmp_path: Path
    ) -> None:
        with self.serve(up, tmp_path, "me/killed/1.0.0") as served:
            client.algo("me/killed").pipe("x")
            served.process.kill()

        until(lambda: not rows(up, "me/killed"), 30)
        until(lambda: not [pid for pid in Path("/proc").glob("[0-9]*/cmdline") if _holds(pid, str(tmp_path))])

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--exec", "/nowhere/program", "--as", "me/x/1.0.0"], "there is no such program"),
            (["--exec", "echo 'open", "--as", "me/x/1.0.0"], "is no command"),
            (["--exec", "cat", "--as", "me/x"], "name a version too"),
            (["--exec", "cat", "--as", "text/clean/1.0.0"], "is published with other content"),
            (["--http", "localhost:8000", "--as", "me/x/1.0.0"], "write it like http://"),
            (["--exec", "cat"], "--as"),
            (["--exec", "cat", "--http", "http://x/", "--as", "me/x/1.0.0"], "name one program"),
            (["--exec", "cat", "--as", "me/x/1.0.0", "--timeout", "soon"], "is not a duration"),
        ],
    )
    def test_what_cannot_be_is_said_at_the_start(self, up: Up, arguments: list[str], said: str) -> None:
        result = up.run("serve", *arguments)

        assert result.returncode != 0
        assert said in result.stderr
        assert "Traceback" not in result.stderr

    def test_a_key_that_may_not_publish_may_not_serve(self, up: Up) -> None:
        key = up.json("key", "create", "caller", "--may", "call:*")[0]["key"]

        result = up.run("serve", "--exec", "cat", "--as", "me/theirs/1.0.0", ALGOMESH_API_KEY=key)

        assert result.returncode == 1
        assert "publish:me/theirs" in result.stderr

    def test_a_revoked_key_serves_no_more(self, client: algomesh.Client, up: Up, tmp_path: Path) -> None:
        made = up.json("key", "create", "server", "--may", "publish:me/*", "call:me/*")[0]
        with self.serve(up, tmp_path, "me/revoked/1.0.0", key=made["key"]):
            assert client.algo("me/revoked").pipe("x").result == {"words": 1}
            assert up.run("key", "revoke", made["id"]).returncode == 0

            until(lambda: not rows(up, "me/revoked"), 30)

    @staticmethod
    def serve(up: Up, folder: Path, as_: str, *more: str, key: str = "") -> Served:
        program = folder / "counts.py"
        program.write_text(COUNTS)
        return Served(up, "--exec", f"{sys.executable} {program}", "--as", as_, *more, key=key)


class TestHttp:
    @pytest.fixture
    def url(self) -> Iterator[str]:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/slow":
                    time.sleep(3)
                status = 200 if self.path != "/broken" else 500
                answer = json.dumps({"length": len(body), "type": self.headers["Content-Type"]}).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
        server.server_close()

    def test_a_call_is_a_post(self, client: algomesh.Client, up: Up, url: str) -> None:
        with Served(up, "--http", f"{url}/predict", "--as", "me/predict/1.0.0", "--concurrency", "4"):
            result = client.algo("me/predict").pipe({"a": 1}).result
            (row,) = rows(up, "me/predict")

        assert result == {"length": 7, "type": "application/json"}
        assert row["state"] == "ready"

    def test_a_failure_and_a_slow_answer_are_typed(self, client: algomesh.Client, up: Up, url: str) -> None:
        with (
            Served(up, "--http", f"{url}/broken", "--as", "me/broken-http/1.0.0"),
            pytest.raises(errors.AlgorithmError, match="answered 500"),
        ):
            client.algo("me/broken-http").pipe("x")
        with (
            Served(up, "--http", f"{url}/slow", "--as", "me/slow-http/1.0.0", "--timeout", "0.5"),
            pytest.raises(errors.RunTimeout),
        ):
            client.algo("me/slow-http").pipe("x")


def answered(client: algomesh.Client, algorithm: str, value: str) -> Any:
    try:
        return client.algo(algorithm).pipe(value).result
    except errors.NoCapacity:
        return None


def _holds(path: Path, text: str) -> bool:
    try:
        return text.encode() in path.read_bytes()
    except OSError:
        return False
