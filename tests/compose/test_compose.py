"""The mesh in containers from `up` to `down`: called, looked at, killed part by part, scaled, upgraded under load."""

import base64
import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import algomesh
from tests.compose.engine import IMAGE, PROJECT, SERVICES, Mesh, docker, logs, say, until
from tests.compose.load import Load

pytestmark = pytest.mark.integration

WHOLE_WITHIN_S = 20.0
STOP_WITHIN_S = 10.0
POST = "What a wonderful day!"


def sentiment(mesh: Mesh, url: str) -> object:
    with algomesh.client(mesh.key, url, timeout=60) as client:
        return client.algo("text/sentiment/1.0.0").pipe(POST).result


def test_every_container_is_well_and_what_it_takes_is_told(mesh: Mesh) -> None:
    facts = mesh.facts(mesh.containers(running=True))

    assert not mesh.unwell()
    assert mesh.ready_after_s < 60
    for image in (IMAGE, f"{IMAGE}-worker"):
        size = int(docker("image", "inspect", "-f", "{{.Size}}", f"{image}:{mesh.tag}"))
        base = int(docker("image", "inspect", "-f", "{{.Size}}", "python:3.11-slim"))
        say(f"image {image}: {size / 1e6:.0f} MB, of which {base / 1e6:.0f} MB are python:3.11-slim")
    ids = [container["Id"] for container in facts]
    usage = docker("stats", "--no-stream", "--format", "{{.Name}}\t{{.MemUsage}}", *ids)
    for line in sorted(usage.splitlines()):
        say(f"memory of {line.replace(PROJECT + '_', '').expandtabs(16)}")


def test_the_seed_snippet_works_over_nats_and_over_http(mesh: Mesh) -> None:
    for url in mesh.urls:
        client = algomesh.client(mesh.key, url)
        with client:
            algo1 = client.algo("text/clean")
            algo2 = client.algo("text/keywords")
            result = algo2.pipe(algo1.pipe("Hello   &amp; goodbye, Algorithmia").result).result

        assert "Algorithmia" in json.dumps(result)


def test_a_chain_of_services_that_do_not_run_is_answered(mesh: Mesh) -> None:
    mesh.compose("run", "--rm", "-T", "algomesh", "stop", "text/clean")

    with algomesh.client(mesh.key, mesh.urls[0]) as client:
        chain = client.algo("text/clean") | client.algo("text/lemmatize") | client.algo("text/sentiment")
        began = time.monotonic()
        cold = chain.pipe(POST, timeout=120)
        cold_s, began = time.monotonic() - began, time.monotonic()
        warm = chain.pipe(POST + " ", timeout=120)

    assert cold.result == warm.result
    warm_ms = 1000 * (time.monotonic() - began)
    say(f"a chain of three, one of them with torch: cold {cold_s:.2f} s, warm {warm_ms:.1f} ms")


def test_no_container_may_write_to_its_image_gain_rights_or_take_more_than_its_share(mesh: Mesh) -> None:
    for facts in mesh.facts(mesh.containers()):
        name, host = facts["Name"], facts["HostConfig"]
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert not host["Privileged"], name
        assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"]), name
        assert host["Memory"], name
        assert host["PidsLimit"], name
        assert host["LogConfig"]["Config"].get("max-size"), name


def test_only_the_launcher_and_who_needs_the_engine_are_uid_0_and_they_have_no_powers_of_root(mesh: Mesh) -> None:
    users = {}
    for facts in mesh.facts(mesh.containers(running=True)):
        service = facts["Config"]["Labels"]["com.docker.compose.service"]
        status = read_of(facts["State"]["Pid"], "status")
        users[service] = int(re.findall(r"^Uid:\t(\d+)", status, re.M)[0])
        held = int(re.findall(r"^CapEff:\t(\w+)", status, re.M)[0], 16)
        allowed = {"launcher": 1 << 5 | 1 << 6 | 1 << 7 | 1 << 19}.get(service, 0)
        assert held & ~allowed == 0, (service, hex(held))

    assert {service for service, uid in users.items() if uid == 0} == {"launcher", "keeper", "keeper-too"}


def test_the_code_of_an_algorithm_runs_as_nobody_and_sees_no_secret(mesh: Mesh) -> None:
    sentiment(mesh, mesh.urls[0])
    launcher = mesh.containers("launcher")[0]
    rows = docker("top", launcher, "-eo", "uid,pid,args").splitlines()[1:]
    instances = [row.split()[1] for row in rows if row.split()[0] not in ("0", "root")]

    assert instances, rows
    for pid in instances:
        assert not re.findall(r"^CapEff:\t0*[1-9a-f]", read_of(int(pid), "status"), re.M)
    for place in ("/srv/launcher/secrets/launcher.nk", "/srv/launcher/secrets", "/srv/launcher"):
        told = subprocess.run(
            ["docker", "exec", "-u", "65534:65534", launcher, "ls", place], capture_output=True, check=False
        )
        assert told.returncode != 0, f"uid 65534 can read {place}"


def test_no_secret_is_in_an_image_a_container_or_the_environment_of_a_process(mesh: Mesh) -> None:
    secrets = secrets_of(mesh)
    assert len(secrets) > 10
    told = {"inspect": docker("inspect", *mesh.containers())}
    for image in (f"{IMAGE}:{mesh.tag}", f"{IMAGE}-worker:{mesh.tag}", f"{IMAGE}-front:test"):
        told[f"history of {image}"] = docker("history", "--no-trunc", image) + docker("inspect", image)
    for service, container, pid in processes(mesh):
        told[f"{service}: {pid}"] = read_of(pid, "environ") + read_of(pid, "cmdline")
        told[f"log of {service}"] = logs(container)

    found = [(where, name) for where, text in told.items() for name, secret in secrets.items() if secret in text]

    assert not found


def test_whatever_is_killed_comes_back_by_itself_and_calls_end_well_or_typed(mesh: Mesh) -> None:
    with Load(mesh.urls, mesh.key) as load:
        for service in SERVICES:
            before, seen = mesh.containers(service), len(load.outcomes)
            began = time.monotonic()
            docker("kill", *before)
            until(lambda which=service: which in mesh.unwell(), f"{service} is down", 10)  # type: ignore[misc]
            mesh.until_whole(WHOLE_WITHIN_S)
            for url in mesh.urls:  # a new caller, with a connection and a key of its own
                assert sentiment(mesh, url) is not None
            took_s = time.monotonic() - began
            load.wait_for(20)
            codes = sorted({outcome.code for outcome in load.outcomes[seen:] if outcome.code})
            say(
                f"{service} killed: whole again after {took_s:.1f} s; calls failed with {', '.join(codes) or 'nothing'}"
            )
            assert took_s < WHOLE_WITHIN_S, service

    say(load.summary())
    assert [outcome for outcome in load.outcomes if not outcome.is_typed] == []
    assert len(load.failed) < len(load.outcomes) / 10, load.summary()


def test_three_gateways_share_the_calls_at_one_address(mesh: Mesh) -> None:
    mesh.scale = 3
    mesh.up()

    with Load((mesh.urls[1],), mesh.key) as load:
        until(lambda: len(gateways_called(mesh)) == 3, "every gateway is called", 30)
        docker("stop", mesh.containers("gateway", running=True)[0])
        load.wait_for(50)
        mesh.compose("up", "-d", "--scale", "gateway=3", "--no-build")
        mesh.until_whole(WHOLE_WITHIN_S)

    say(load.summary())
    assert load.failed == []


def test_another_tag_takes_over_without_a_failed_call(mesh: Mesh) -> None:
    for image in (IMAGE, f"{IMAGE}-worker"):
        make = ["docker", "build", "-q", "-t", f"{image}:b", "--label", "algomesh.test=b", "-"]
        subprocess.run(make, input=f"FROM {image}:a\n", text=True, check=True, capture_output=True)

    mesh.tag = "b"
    with Load(mesh.urls, mesh.key) as load:
        began = time.monotonic()
        mesh.up()
        say(f"upgraded under load in {time.monotonic() - began:.0f} s")
        load.wait_for(50)

    say(load.summary())
    assert load.failed == []
    images = {facts["Config"]["Image"] for facts in mesh.facts(mesh.containers("registry", "gateway", "launcher"))}
    assert images == {f"{IMAGE}:b", f"{IMAGE}-worker:b"}


def test_every_program_ends_by_itself_when_it_is_told_to(mesh: Mesh) -> None:
    with algomesh.client(mesh.key, mesh.urls[1]) as client:
        run = client.algo("text/clean").start(POST)
        began = time.monotonic()
        mesh.compose("stop", within_s=120)
        took_s = time.monotonic() - began
        run.wait()

    say(f"all of it stopped in {took_s:.1f} s")
    for facts in mesh.facts(mesh.containers()):
        # 137 would be Docker's SIGKILL after its patience; the keepers must not have started anything again.
        assert (facts["State"]["Status"], facts["State"]["ExitCode"]) in {("exited", 0), ("exited", 143)}, facts["Name"]


def test_what_was_published_and_kept_is_there_after_the_next_up_and_nothing_after_down(mesh: Mesh) -> None:
    key = mesh.key
    mesh.up()

    assert mesh.key == key
    assert sentiment(mesh, mesh.urls[1]) is not None
    listed = json.loads(mesh.compose("run", "--rm", "-T", "algomesh", "runs", "--json", "--limit", "1000"))
    assert len(listed) > 100

    mesh.remove()
    for kind in (["ps", "-aq"], ["volume", "ls", "-q"], ["network", "ls", "-q"]):
        assert not docker(*kind, "--filter", f"label=com.docker.compose.project={PROJECT}").strip()


def read_of(pid: int, file: str) -> str:
    """A file of /proc of a process in a container, as the engine's host sees it; empty when it has gone."""
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def processes(mesh: Mesh) -> Iterator[tuple[str, str, int]]:
    """Every process in every running container: its service, its container, its pid on this host."""
    for facts in mesh.facts(mesh.containers(running=True)):
        for row in docker("top", facts["Id"], "-eo", "pid").splitlines()[1:]:
            yield facts["Config"]["Labels"]["com.docker.compose.service"], facts["Id"], int(row)


def secrets_of(mesh: Mesh) -> dict[str, str]:
    """Every secret of this mesh, by the name of its file."""
    vault = f"{PROJECT}_vault:/vault:ro"
    script = "cd /vault; for file in *; do echo $file $(base64 -w0 $file); done"
    image = f"{IMAGE}:{mesh.tag}"
    listed = docker("run", "--rm", "-u", "0", "-v", vault, "--entrypoint", "sh", image, "-c", script)
    found = {}
    for line in listed.splitlines():
        name, content = line.split()
        if not name.endswith(".pub") and name != "pepper":
            found[name] = base64.b64decode(content).decode().strip().rpartition(":")[2]
    return found


def gateways_called(mesh: Mesh) -> set[str]:
    """The gateways that have served a call."""
    return {each for each in mesh.containers("gateway", running=True) if "request_served" in logs(each)}


def test_the_front_says_in_the_meshs_own_form_that_nobody_is_there(mesh: Mesh) -> None:
    """Kept last: it needs nothing of the mesh that was taken down but the image."""
    network = f"{PROJECT}-front"
    docker("network", "create", network)
    try:
        options = [
            "-d",
            "--rm",
            "--network",
            network,
            "-e",
            "GATEWAYS=nobody:8080",
            "-p",
            f"127.0.0.1:{mesh.http}:8080",
        ]
        container = docker("run", *options, f"{IMAGE}-front:test").strip()
        try:
            with pytest.raises(urllib.error.HTTPError) as failed:
                until(lambda: asked(f"{mesh.urls[1]}/mesh/v1/call/text/clean"), "the front answers", 40)
            assert json.loads(failed.value.read())["code"] == "unreachable"
        finally:
            docker("kill", container)
    finally:
        docker("network", "rm", network)


def asked(url: str) -> bool:
    """Whether something listens there that answers 200. Raises HTTPError for another answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=b"x"), timeout=40):
            return True
    except urllib.error.HTTPError:
        raise
    except OSError:
        return False
