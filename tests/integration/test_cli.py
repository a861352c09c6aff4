"""The command line against one real mesh: what each command prints, for people and as JSON, and what it refuses."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conditions import until
from tests.integration.up_fixtures import COMMAND, SHOUT, Up, environment, run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A mesh with me/shout, me/double and me/echo."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "shout.py").write_text(SHOUT)
    with Up(folder / "state") as running:
        result = running.run("publish", str(folder / "shout.py"))
        assert result.stdout.splitlines() == [
            "published  me/shout/1.0.0",
            "published  me/double/1.0.0",
            "published  me/echo/1.0.0",
        ]
        yield running


def test_publishing_the_same_again_changes_nothing_and_other_content_is_refused(up: Up, tmp_path: Path) -> None:
    file = tmp_path / "shout.py"
    file.write_text(SHOUT)

    again = up.json("publish", str(file))
    file.write_text(SHOUT.replace("upper()", "lower()"))
    other = up.run("publish", str(file))

    assert [(row["algorithm"], row["version"], row["created"]) for row in again] == [
        ("me/shout", "1.0.0", False),
        ("me/double", "1.0.0", False),
        ("me/echo", "1.0.0", False),
    ]
    assert other.returncode == 1
    assert "1.0.1" in other.stderr
    assert other.stderr.startswith("error: ")


def test_ls_lists_versions(up: Up) -> None:
    rows = up.json("ls")

    assert [(row["algorithm"], row["version"]) for row in rows] == [
        ("me/double", "1.0.0"), ("me/echo", "1.0.0"), ("me/shout", "1.0.0"),
    ]  # fmt: skip
    plain = up.run("ls").stdout.splitlines()
    assert plain[0].split() == ["ALGORITHM", "VERSION", "ALIASES", "PUBLISHED", "DESCRIPTION"]
    assert plain[3].endswith("Capitals.")


PIPELINE = """
import algomesh
from algomesh import stage

LOUD = algomesh.named("me/loud", stage("me/echo") | "me/shout", version="1.0.0")
"""


def test_an_alias_is_set_listed_called_and_removed(up: Up) -> None:
    made = up.run("alias", "set", "me/shout", "stable", "1.0.0")
    listed = up.run("alias", "ls").stdout.splitlines()
    rows = up.json("alias", "ls", "me/shout")
    in_ls = [row["aliases"] for row in up.json("ls") if row["algorithm"] == "me/shout"]
    called = up.run("call", "me/shout/stable", "hello")
    removed = up.run("alias", "rm", "me/shout", "stable")
    after = up.run("call", "me/shout/stable", "hello")

    assert made.stdout == "me/shout/stable is 1.0.0\n"
    assert [line.split() for line in listed] == [["ALGORITHM", "ALIAS", "MEANS"], ["me/shout", "stable", "1.0.0"]]
    assert rows == [{"algorithm": "me/shout", "alias": "stable", "weights": {"1.0.0": 1}, "means": "1.0.0"}]
    assert in_ls == [{"stable": 1.0}]
    assert called.stdout == "HELLO\n"
    assert removed.stdout == "removed me/shout/stable\n"
    assert after.returncode == 1
    assert "no version 'stable'" in after.stderr
    assert up.json("alias", "ls") == []


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("set", "me/shout", "latest", "1.0.0"), 2, "always the newest"),
        (("set", "me/shout", "stable", "1.0"), 2, "is not a version"),
        (("set", "me/shout", "stable", "1.0.0=x"), 2, "a whole number"),
        (("set", "me/shout", "stable", "1.0.0", "1.0.0=2"), 2, "given twice"),
        (("set", "me/shout/1.0.0", "stable", "1.0.0"), 2, "has a version in it"),
        (("set", "me/shout", "stable", "7.0.0"), 1, "has no version '7.0.0'; it has 1.0.0"),
        (("set", "me/nothing", "stable", "1.0.0"), 1, "there is no algorithm 'me/nothing'"),
        (("rm", "me/shout", "stable"), 1, "has no alias 'stable'"),
        (("ls", "me/shuot"), 1, "did you mean"),
    ],
)
def test_what_no_alias_can_be_is_refused_with_why(up: Up, words: tuple[str, ...], status: int, said: str) -> None:
    result = up.run("alias", *words)

    assert result.returncode == status
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_a_pipeline_is_published_from_python_and_from_json(up: Up, tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(PIPELINE)
    document = {"name": "me/quiet", "version": "1.0.0", "pipeline": {"kind": "stage", "reference": "me/loud"}}
    (tmp_path / "quiet.json").write_text(json.dumps(document))

    from_python = up.run("publish", str(tmp_path / "loud.py"))
    from_json = up.run("publish", str(tmp_path / "quiet.json"))
    again = up.json("publish", str(tmp_path / "loud.py"))
    rows = {row["algorithm"]: row for row in up.json("ls")}
    plain = up.run("ls").stdout
    called = [up.run("call", name, "hello").stdout for name in ("me/loud", "me/loud/1.0.0", "me/quiet")]

    assert called == ["HELLO\n"] * 3
    assert from_python.stdout == "published  me/loud/1.0.0\n"
    assert from_json.stdout == "published  me/quiet/1.0.0\n"
    assert [row["created"] for row in again] == [False]
    assert rows["me/quiet"]["pipeline"] == document["pipeline"]
    assert rows["me/shout"]["pipeline"] is None
    assert "me/echo" in plain.partition("me/loud")[2].splitlines()[0]


def test_a_json_file_that_is_no_pipeline_is_refused(up: Up, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"name": "me/bad", "pipeline": {"kind": "stage", "reference": "me/shout"}}')

    refused = up.run("publish", str(tmp_path / "bad.json"))

    assert refused.returncode == 1
    assert "bad.json: this is not a named pipeline" in refused.stderr
    assert "`version`" in refused.stderr


def test_input_comes_from_the_command_line_a_pipe_or_a_file_and_keeps_its_kind(up: Up, tmp_path: Path) -> None:
    blob = bytes(range(256))
    (tmp_path / "blob").write_bytes(blob)

    assert up.run("call", "me/shout", "héllo").stdout == "HÉLLO\n"
    assert up.run("call", "me/shout", "-", stdin="from a pipe").stdout == "FROM A PIPE\n"
    assert up.run("call", "me/shout", stdin="from a pipe").stdout == "FROM A PIPE\n"
    assert up.run("call", "me/double", "--type", "json", "21").stdout == "42.0\n"
    assert up.run("call", "me/echo", "--type", "json", '{"a": [1, null]}').stdout == '{"a":[1,null]}\n'
    assert up.run("call", "ME/shout/1.0", "").stdout == "\n"
    raw = subprocess.run(
        [*COMMAND, "call", "me/echo", "--file", str(tmp_path / "blob")],
        env=environment(ALGOMESH_URL=up.said["nats"], ALGOMESH_API_KEY=up.said["key"]),
        capture_output=True, check=True,
    )  # fmt: skip
    assert raw.stdout == blob


def test_a_call_as_json_has_the_metadata_and_goes_through_the_gateway_alike(up: Up) -> None:
    direct = up.json("call", "me/shout", "a")[0]
    result = up.run("call", "me/shout", "b", "--json", ALGOMESH_URL=up.said["gateway"])
    through = json.loads(result.stdout)[0]

    assert direct["result"] == "A"
    assert direct["version"] == through["version"] == "1.0.0"
    assert through["result"] == "B"
    wanted = {"result", "content_type", "duration", "run_id", "version", "cold_start_s", "attempts"}
    assert wanted <= set(direct) & set(through)


def test_ps_shows_what_runs_and_stop_ends_it_until_the_next_call(up: Up) -> None:
    up.run("call", "me/shout", "up with you")

    row = next(row for row in up.json("ps") if row["algorithm"] == "me/shout")
    assert {"algorithm", "version", "instance", "pid", "state", "load", "since", "reason"} <= set(row)
    assert row["state"] == "ready"
    assert abs(time.time() - row["since"]) < 60
    heading = up.run("ps").stdout.splitlines()[0].split()
    assert heading == ["ALGORITHM", "VERSION", "INSTANCE", "PID", "STATE", "LOAD", "SINCE", "REASON"]

    assert up.json("stop", "me/shout/1.0.0") == [{"algorithm": "me/shout", "version": "1.0.0", "stopped": 1}]
    assert not [row for row in up.json("ps") if row["algorithm"] == "me/shout"]
    assert up.run("stop", "me/shout").stdout == "me/shout: no instance ran; the next call starts one\n"
    assert up.json("call", "me/shout", "again")[0]["cold_start_s"] > 0


async def test_runs_are_listed_with_what_they_cost(up: Up) -> None:
    called = up.json("call", "me/shout", "remember me")[0]
    up.run("call", "me/double", "--type", "json", '"not a number"')

    await until(lambda: called["run_id"] in [row["run"] for row in up.json("runs", "--limit", "50")], 10)
    row = next(row for row in up.json("runs", "--algorithm", "me/shout") if row["run"] == called["run_id"])

    assert {"run", "algorithm", "version", "caller", "state", "compute_ms", "cold_ms", "error"} <= set(row)
    assert (row["algorithm"], row["version"], row["state"]) == ("me/shout", "1.0.0", "succeeded")
    assert row["caller"].startswith("k~")
    await until(lambda: "bad_input" in [row["error"] for row in up.json("runs", "--algorithm", "me/double")], 10)
    assert [row["run"] for row in up.json("runs", "--root", called["run_id"])] == [called["run_id"]]
    assert up.json("runs", "--root", called["run_id"][:12])[0]["run"] == called["run_id"]
    heading = up.run("runs", "--limit", "1").stdout.splitlines()[0]
    assert heading.split()[:5] == ["RUN", "ALGORITHM", "VERSION", "CALLER", "STATE"]


async def test_logs_show_what_a_run_printed(up: Up) -> None:
    called = up.json("call", "me/shout", "to the log")[0]

    def lines() -> list[str]:
        return [row["line"] for row in up.json("logs", "me/shout", "--run", called["run_id"])]

    await until(lambda: lines() == ["shouting to the log"], 10)
    assert "shouting to the log" in up.run("logs", "me/shout", "--lines", "5").stdout


def test_a_key_may_do_what_its_scopes_say_until_it_is_revoked(up: Up, tmp_path: Path) -> None:
    (tmp_path / "shout.py").write_text(SHOUT)
    created = up.run("key", "create", "ann", "--may", "call:me/shout", "publish:ann/*")
    assert created.returncode == 0, created.stderr
    key = created.stdout.strip()

    def as_ann(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return up.run(*arguments, ALGOMESH_API_KEY=key)

    assert as_ann("call", "me/shout", "allowed").stdout == "ALLOWED\n"
    refusals = [
        (as_ann("call", "me/echo", "no"), "me/echo"),
        (as_ann("ps"), "'observe'"),
        (as_ann("runs"), "'observe'"),
        (as_ann("stop", "me/shout"), "'publish:me/shout'"),
        (as_ann("publish", str(tmp_path / "shout.py")), "'publish:me/shout'"),
        (as_ann("key", "list"), "'admin'"),
    ]
    for refused, word in refusals:
        assert refused.returncode == 1
        assert word in refused.stderr
        assert refused.stderr.count("\n") == 1
    row = next(row for row in up.json("key", "list") if row["name"] == "ann")
    assert (row["scopes"], row["state"]) == (["call:me/shout", "publish:ann/*"], "active")
    assert key not in json.dumps(up.json("key", "list"))
    assert up.run("key", "create", "ann", "--may", "observe").returncode == 1

    assert up.run("key", "revoke", "ann").stdout == "revoked ann\n"
    assert "does not know this key" in as_ann("call", "me/shout", "no more").stderr


def test_errors_are_one_line_that_says_what_to_do(up: Up, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cases = [
        (up.run("call", "me/shot", "x"), 1, "me/shout"),
        (up.run("call", "me/shout/2.0.0", "x"), 1, "1.0.0"),
        (up.run("call", "no reference", "x"), 1, "owner/name"),
        (up.run("call", "me/double", "21"), 1, "--type json"),
        (up.run("call", "me/double", "--type", "json", "{"), 1, "not JSON"),
        (up.run("call", "me/shout", "--file", str(tmp_path / "none")), 1, "No such file"),
        (up.run("call", "me/shout", "x", "--timeout", "0"), 1, "timeout"),
        (up.run("publish", str(tmp_path / "empty")), 1, "no algorithm"),
        (up.run("publish", str(tmp_path / "none")), 1, "neither a folder"),
        (up.run("stop", "me/nobody"), 1, "me/nobody"),
        (up.run("ls", ALGOMESH_API_KEY="am_wrong"), 1, "does not know this key"),
        (up.run("ls", ALGOMESH_URL="nats://127.0.0.1:1"), 1, "127.0.0.1:1"),
        (up.run("ls", ALGOMESH_URL=up.said["gateway"]), 1, "nats://"),
        (up.run("key", "revoke", "nobody"), 1, "key list"),
    ]
    for result, code, words in cases:
        assert result.returncode == code, result
        assert words in result.stderr, result
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stdout == ""


def test_a_wrong_command_line_ends_with_2(up: Up) -> None:
    for arguments, words in (
        (("call",), "REF"),
        (("call", "me/shout", "x", "--type", "xml"), "text, json, binary"),
        (("call", "me/shout", "x", "--file", "y"), "not both"),
        (("key", "create", "bob"), "--may"),
        (("key", "create", "bob", "--may", "call:everything"), "pattern"),
        (("serve", "everything"), "registry, launcher, gateway, ledger"),
        (("nonsense",), "nonsense"),
    ):
        result = up.run(*arguments)
        assert result.returncode == 2, result
        assert words in result.stderr


def test_a_second_terminal_finds_the_mesh_and_its_key_goes_nowhere_else(up: Up, tmp_path: Path) -> None:
    state = str(up.state)

    assert run("call", "me/shout", "found", ALGOMESH_STATE=state).stdout == "FOUND\n"
    assert run("call", "me/shout", "found", ALGOMESH_STATE=state, ALGOMESH_URL=up.said["gateway"]).stdout == "FOUND\n"
    elsewhere = run("ls", ALGOMESH_STATE=state, ALGOMESH_URL="nats://127.0.0.1:1")
    assert "set ALGOMESH_API_KEY" in elsewhere.stderr
    nowhere = run("ls", ALGOMESH_STATE=str(tmp_path))
    assert nowhere.returncode == 1
    assert "algomesh up" in nowhere.stderr


def test_ctrl_c_is_quiet_and_a_closed_pipe_too(up: Up) -> None:
    variables = environment(ALGOMESH_URL=up.said["nats"], ALGOMESH_API_KEY=up.said["key"])
    up.run("call", "me/shout", "be there")
    watching = subprocess.Popen(
        [*COMMAND, "ps", "--watch"], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    assert watching.stdout.readline().startswith("ALGORITHM")
    watching.send_signal(signal.SIGINT)
    assert (watching.communicate(timeout=10)[1], watching.returncode) == ("", 130)

    reading, writing = os.pipe()
    os.close(reading)
    closed = subprocess.run([*COMMAND, "ls"], env=variables, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert closed.stderr == b""


def test_help_is_quick_and_loads_nothing_of_the_mesh() -> None:
    code = (
        "import sys\n"
        "from algomesh_services.cli import app\n"
        "print([name for name in ('algomesh', 'rich', 'structlog', 'asyncio', 'nats', 'torch') if name in sys.modules])"
    )
    loaded = subprocess.run([COMMAND[0], "-c", code], capture_output=True, text=True, check=True)

    assert loaded.stdout.strip() == "[]"
    helped = run("--help")
    assert helped.returncode == 0
    assert "algomesh publish" in helped.stdout
    assert run("call", "--help").stdout.count("algomesh call") >= 5
    assert run("--version").stdout.startswith("algomesh 0.")
