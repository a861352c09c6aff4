"""`algomesh graph` and `algomesh prewarm …`: what they print, draw and refuse. The programs' answers are played."""

import asyncio
import json
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from msgspec import Struct

from algomesh_broker import platform
from algomesh_broker.connection import Connection
from algomesh_broker.identity import Identity
from algomesh_broker.platform import Edge, RunRow, StartRow, unpack
from algomesh_broker.request_server import Handler, Refusal, RequestServer
from algomesh_broker.server import NatsServer
from algomesh_broker.subjects import PlatformRequest
from tests.integration.up_fixtures import run

pytestmark = pytest.mark.integration

EDGES = [
    Edge(caller_of="text/split", algorithm="text/clean", probability=0.93, delay_s=1.2, count=41, in_time=0.8),
    Edge(caller_of="text/split", algorithm="text/count", probability=0.4, delay_s=0.02, count=18),
    Edge(caller_of="text/clean", algorithm="text/split", probability=0.1, delay_s=90, count=4, in_time=1),
    Edge(caller_of="text/split", algorithm="text/rare", probability=0.01, delay_s=1, count=1),
]


class Programs:
    """The ledger, the registry and the pre-warmer of a mesh, as far as these commands ask them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.edges = list(EDGES)
        self.starts: list[StartRow] = []
        self.savings = platform.SavingsRow(
            starts={"call": 3, "next": 20}, used={"call": 3, "next": 18}, gpu_s_held=12.5, gpu_s_for_nothing=1.5,
            saved_s=31.25, calls=400, cold_calls=3, spared={"next": 18, "kept": 4}, saved={"next": 27.25, "kept": 4.0},
        )  # fmt: skip
        self.runs: list[RunRow] = []
        self.options = platform.Options(gpu=1.0)
        self.asked: list[Any] = []

    async def graph(self, _: PlatformRequest, body: bytes) -> Struct:
        self.asked.append(unpack(platform.Graph, body))
        return platform.GraphEdges(edges=self.edges)

    async def latest_starts(self, _: PlatformRequest, body: bytes) -> Struct:
        self.asked.append(unpack(platform.Starts, body))
        return platform.StartRows(starts=self.starts)

    async def saved(self, _: PlatformRequest, body: bytes) -> Struct:
        self.asked.append(unpack(platform.Savings, body))
        return self.savings

    async def history(self, _: PlatformRequest, body: bytes) -> Struct:
        wanted = unpack(platform.History, body)
        self.asked.append(wanted)
        names = [row.run for row in self.runs]
        first = names.index(wanted.after) + 1 if wanted.after else 0
        later = [row for row in self.runs[first:] if row.queued_at >= wanted.since]
        return platform.RunRows(runs=later[:100])

    async def manifest(self, request: PlatformRequest, body: bytes) -> Struct:
        version = unpack(platform.FetchManifest, body).version
        if request.algorithm == "me/gone":
            raise Refusal("unknown_version", f"me/gone/{version} was never published")
        owner, name = request.algorithm.split("/")
        manifest = platform.Manifest(owner=owner, name=name, version=version, entry="m:f", options=self.options)
        return platform.StoredManifest(manifest=manifest, digest="")

    async def run(self, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        variables = {"ALGOMESH_URL": self.url, "ALGOMESH_API_KEY": "a key", **more}
        return await asyncio.to_thread(run, *arguments, **variables)

    async def json(self, *arguments: str) -> Any:
        result = await self.run(*arguments, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)


@pytest_asyncio.fixture
async def mesh(nats_server: NatsServer) -> AsyncIterator[Programs]:
    programs = Programs(nats_server.url)
    verbs: dict[str, dict[str, Handler]] = {
        "prewarmer": {"graph": programs.graph, "starts": programs.latest_starts, "savings": programs.saved},
        "ledger": {"history": programs.history},
        "registry": {"manifest": programs.manifest},
    }
    async with AsyncExitStack() as stack:
        for program, handlers in verbs.items():
            identity = Identity.of_key(f"the {program}")
            connection = await stack.enter_async_context(await Connection.open(nats_server.url, identity))
            server = RequestServer(connection, program, handlers, at_once=8)
            await server.serve()
            stack.push_async_callback(server.close)
        yield programs


def row(run_id: str, algorithm: str, called_s: float, took_s: float, parent: str = "", cold_s: float = 0.0) -> RunRow:
    begun_s = called_s + cold_s
    return RunRow(
        run=run_id, attempt=1, root=run_id.partition(".")[0], parent=parent, algorithm=algorithm, version="1.0.0",
        caller="k~me", root_caller="k~me", instance=f"i-{run_id.replace('.', '-')}", state="succeeded",
        queued_at=begun_s, started_at=begun_s, ended_at=begun_s + took_s, compute_ms=1000 * took_s,
        cold_ms=1000 * cold_s, error="",
    )  # fmt: skip


async def test_the_graph_is_listed_by_algorithm_the_likeliest_first(mesh: Programs) -> None:
    plain = (await mesh.run("graph")).stdout.splitlines()

    assert plain[0].split() == ["ALGORITHM", "FOLLOWED", "BY", "PROBABILITY", "AFTER", "IN", "TIME", "SEEN"]
    assert [line.split()[:2] for line in plain[1:]] == [
        ["text/clean", "text/split"], ["text/split", "text/clean"], ["text/split", "text/count"],
        ["text/split", "text/rare"],
    ]  # fmt: skip
    assert plain[2].split()[2:] == ["0.93", "1.2", "s", "80", "%", "41"]
    assert plain[3].split()[2:] == ["0.40", "20", "ms", "–", "18"]  # without any cold start yet


async def test_the_graph_as_json_has_every_edge_and_every_field(mesh: Programs) -> None:
    edges = await mesh.json("graph")

    assert {(edge["caller_of"], edge["algorithm"]) for edge in edges} == {
        (edge.caller_of, edge.algorithm) for edge in EDGES
    }
    assert edges[1] == {
        "caller_of": "text/split", "algorithm": "text/clean", "probability": 0.93, "delay_s": 1.2, "count": 41,
        "in_time": 0.8,
    }  # fmt: skip
    assert edges[2]["in_time"] is None


async def test_the_graph_is_drawn_as_svg_and_png(mesh: Programs, tmp_path: Path) -> None:
    svg, png = tmp_path / "calls.svg", tmp_path / "calls.png"

    result = await mesh.run("graph", "--svg", str(svg), "--png", str(png))

    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr.splitlines() == [
        f"drawn: {svg}",
        f"drawn: {png}",
        "1 of 4 edges are not drawn: the unlikely ones; without FILE all are listed",
    ]
    texts = {text.strip() for text in ET.parse(svg).getroot().itertext() if text.strip()}
    assert {"text/split", "text/clean", "text/count", "0.93 · 1.2 s", "0.40 · 20 ms", "0.10 · 90.0 s"} <= texts
    assert "text/rare" not in texts
    assert "cold starts begun ahead in time" in texts
    assert png.read_bytes().startswith(b"\x89PNG")


async def test_a_picture_of_many_algorithms_that_call_in_circles_is_drawn(mesh: Programs, tmp_path: Path) -> None:
    mesh.edges = [
        Edge(caller_of=f"a/n{number}", algorithm=f"a/n{(number * step) % 60}", probability=0.9 / step, delay_s=step)
        for number in range(60)
        for step in range(1, 8)
    ]
    svg = tmp_path / "calls.svg"

    result = await mesh.run("graph", "--svg", str(svg))

    assert result.returncode == 0, result.stderr
    assert "a/n59" in svg.read_text()


async def test_a_picture_that_cannot_be_written_is_one_line(mesh: Programs, tmp_path: Path) -> None:
    result = await mesh.run("graph", "--svg", str(tmp_path / "nowhere" / "calls.svg"))

    assert result.returncode == 1
    assert result.stderr == f"error: {tmp_path}/nowhere/calls.svg: No such file or directory\n"


async def test_without_the_drawing_libraries_it_says_what_to_install_and_still_prints(
    mesh: Programs, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'matplotlib' else find(name, *rest)\n"
    )

    refused = await mesh.run("graph", "--png", str(tmp_path / "calls.png"), PYTHONPATH=str(tmp_path))
    printed = await mesh.run("graph", PYTHONPATH=str(tmp_path))

    assert refused.returncode == 1
    assert refused.stderr.startswith("error: drawing needs matplotlib, which is not installed: pip install 'algomesh[")
    assert len(printed.stdout.splitlines()) == 1 + len(EDGES)


async def test_a_mesh_that_has_learned_nothing_says_so(mesh: Programs, tmp_path: Path) -> None:
    mesh.edges = []

    result = await mesh.run("graph", "--svg", str(tmp_path / "calls.svg"))

    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr.startswith("the mesh has learned nothing yet; it learns when")
    assert not (tmp_path / "calls.svg").exists()
    assert await mesh.json("graph") == []


async def test_starts_say_why_and_what_became_of_them(mesh: Programs) -> None:
    now = time.time()
    mesh.starts = [
        StartRow(
            instance="host-2", algorithm="text/clean", version="1.2.0", kind="next",
            reason="next after text/split in 1.2 s, p = 0.93", started_at=now - 50, ready_at=now - 49,
            used_at=now - 48.5, saved_s=0.9, gpu=0.25,
        ),
        StartRow(
            instance="host-1", algorithm="text/count", version="1.0.0", kind="gap", reason="called about every 60 s",
            started_at=now - 90, ready_at=now - 88, ended_at=now - 60, held_s=28,
        ),
    ]  # fmt: skip

    plain = (await mesh.run("prewarm", "starts", "--limit", "7")).stdout.splitlines()

    assert mesh.asked == [platform.Starts(limit=7)]
    assert plain[0].split() == [
        "STARTED", "ALGORITHM", "VERSION", "KIND", "TOOK", "S", "USED", "IDLE", "S", "SAVED", "S", "REASON",
    ]  # fmt: skip
    assert " ".join(plain[1].split()[3:]) == (
        "text/clean 1.2.0 next 1.0 after 1.5 s - 0.9 next after text/split in 1.2 s, p = 0.93"
    )
    assert " ".join(plain[2].split()[3:]) == "text/count 1.0.0 gap 2.0 never 28.0 - called about every 60 s"
    rows = await mesh.json("prewarm", "starts")
    assert [(row["instance"], row["gpu"], row["saved_s"]) for row in rows] == [("host-2", 0.25, 0.9), ("host-1", 0, 0)]


async def test_no_starts_is_a_sentence(mesh: Programs) -> None:
    result = await mesh.run("prewarm", "starts")

    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr.startswith("no starts yet")


async def test_savings_count_starts_by_reason_and_what_they_brought(mesh: Programs) -> None:
    plain = (await mesh.run("prewarm", "savings")).stdout.splitlines()

    assert [line.split() for line in plain[:3]] == [
        ["STARTED", "FOR", "STARTS", "USED", "UNUSED"], ["call", "3", "3", "0"], ["next", "20", "18", "2"],
    ]  # fmt: skip
    assert plain[4:] == [
        "held idle   12.5 GPU-seconds, of which 1.500 for starts that nobody used",
        "saved       31.2 seconds that callers did not wait, in 22 calls: 18 by starts ahead, 4 by instances kept for"
        " longer",
        "cold        3 of 400 calls (0.8 %)",
    ]


async def test_calls_that_were_spared_a_wait_are_listed(mesh: Programs) -> None:
    spared = platform.SparedRow(
        run="r1", root="r0", algorithm="text/clean", version="1.2.0", caller="k~me", at=time.time() - 5, seconds=2.5,
        why="kept", count=4,
    )  # fmt: skip
    mesh.savings = msgspec.structs.replace(mesh.savings, rows=[spared])

    plain = (await mesh.run("prewarm", "savings", "--calls", "20")).stdout.splitlines()
    rows = await mesh.json("prewarm", "savings", "--calls", "20")

    assert plain[0].split() == [
        "CALLED",
        "ALGORITHM",
        "VERSION",
        "SPARED",
        "S",
        "WHY",
        "CALLS",
        "CALLER",
        "RUN",
        "ROOT",
    ]
    assert plain[1].split()[-8:] == ["text/clean", "1.2.0", "2.500", "kept", "4", "k~me", "r1", "r0"]
    assert rows == [msgspec.structs.asdict(spared)]
    assert [asked.calls for asked in mesh.asked] == [20, 20]


async def test_where_no_call_was_spared_anything_it_says_so(mesh: Programs) -> None:
    result = await mesh.run("prewarm", "savings", "--calls", "5")

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "no call was spared a wait yet\n")


async def test_savings_as_json_are_one_object_of_the_time_that_was_asked_for(mesh: Programs) -> None:
    (saved,) = await mesh.json("prewarm", "savings", "--since", "2h")

    assert saved["starts"] == {"call": 3, "next": 20}
    assert saved["cold_share"] == 3 / 400
    assert saved["spared"] == {"next": 18, "kept": 4}
    assert "rows" not in saved
    assert mesh.asked[0].since == pytest.approx(time.time() - 7_200, abs=60)


async def test_a_replay_compares_rules_for_what_was_recorded(mesh: Programs) -> None:
    began = time.time() - 20_000
    for number in range(150):  # more than a page of this ledger
        at = began + 100.0 * number
        cold_s = 2.0 if number < 3 else 0.0
        mesh.runs += [
            row(f"r{number}", "me/a", at, 3, cold_s=cold_s),
            row(f"r{number}.b", "me/b", at + cold_s + 1, 1, parent=f"r{number}"),
        ]

    rows = await mesh.json(
        "prewarm", "replay", "--latency-value", "5", "--keep-alive", "10", "--keep-alive", "10m", "--since", "12h"
    )

    by_name = {row["what_if"]: row for row in rows}
    assert list(by_name) == ["latency value 5", "keep-alive 10 s", "keep-alive 600 s", "always warm"]
    assert {(row["requests"], row["calls"]) for row in rows} == {(150, 300)}
    short, long = by_name["keep-alive 10 s"], by_name["keep-alive 600 s"]
    # me/a takes 2 s to start, me/b, which never waited, the default of 1 s.
    assert short["added_s"] == pytest.approx(150 * 3)
    assert (short["cold_starts"], short["kind"], short["value"]) == (300, "keep-alive", 10)
    assert long["added_s"] == pytest.approx(3)
    assert by_name["always warm"]["added_s"] == 0
    assert short["costs_gpu_s"] == {"5": pytest.approx(short["gpu_s_for_nothing"] + 5 * short["added_s"])}
    assert by_name["latency value 5"]["added_s"] < short["added_s"]


async def test_a_replay_is_a_table_with_what_it_rests_on(mesh: Programs) -> None:
    began = time.time() - 3_600
    mesh.runs = [row("r0", "me/a", began, 3, cold_s=2), row("r1", "me/gone", began + 100, 1)]

    result = await mesh.run("prewarm", "replay", "--latency-value", "1", "--latency-value", "30")

    assert result.returncode == 0, result.stderr
    plain = result.stdout.splitlines()
    assert " ".join(plain[0].split()) == ("WHAT IF GPU-H FOR NOTHING ADDED S COLD STARTS OF CALLS COST AT 1 COST AT 30")
    assert [line.split("  ")[0] for line in plain[1:]] == ["latency value 1", "latency value 30", "always warm"]
    assert "2 runs of 2 algorithms in 2 requests" in result.stderr
    assert "1 of the runs had waited" in result.stderr
    assert "1 of the algorithms are no longer published" in result.stderr


async def test_a_replay_of_little_is_told_in_gpu_seconds(mesh: Programs) -> None:
    mesh.runs = [row("r0", "me/a", time.time() - 60, 3, cold_s=2)]

    plain = (await mesh.run("prewarm", "replay", "--keep-alive", "10")).stdout.splitlines()

    assert " ".join(plain[0].split()).startswith("WHAT IF GPU-S FOR NOTHING ADDED S")
    assert plain[2].split() == ["keep-alive", "10", "s", "12.0", "2.000", "1", "100.0", "%", "22.0"]


async def test_a_replay_of_nothing_says_how_to_look_further_back(mesh: Programs) -> None:
    result = await mesh.run("prewarm", "replay", "--since", "1h")

    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr.startswith("nothing ran in the last 1h, so there is nothing to replay")
    assert await mesh.json("prewarm", "replay") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("prewarm", "replay", "--since", "soon"), "--since='soon' is not a duration"),
        (("prewarm", "replay", "--keep-alive", "-3"), "--keep-alive='-3' is not a duration"),
        (("prewarm", "replay", "--latency-value", "nan"), "--latency-value is a number from 0"),
        (("prewarm", "replay", "--latency-value", "-1"), "--latency-value is a number from 0"),
        (("prewarm", "savings", "--since", "0"), "--since='0' is not a duration"),
    ],
)
async def test_a_wrong_option_is_refused_before_the_mesh_is_asked(
    mesh: Programs, arguments: tuple[str, ...], said: str
) -> None:
    result = await mesh.run(*arguments)

    assert result.returncode == 2
    assert said in result.stderr
    assert mesh.asked == []


@pytest.mark.parametrize("arguments", [("graph",), ("prewarm", "starts"), ("prewarm", "savings")])
async def test_without_a_pre_warmer_it_is_said_how_to_start_one(
    nats_server: NatsServer, arguments: tuple[str, ...]
) -> None:
    result = await Programs(nats_server.url).run(*arguments)

    assert result.returncode == 1
    assert "prewarmer is not running" in result.stderr
    assert "algomesh serve prewarmer" in result.stderr
