"""Isolation: what instances of a root launcher can and cannot reach, and what is said where that cannot be had."""

import json
import os
import pwd
import shutil
import site
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import pytest

from algomesh_services.launcher import isolation
from algomesh_services.launcher.isolation import Isolation, plan_mounts

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent
SOURCES = HERE.parent.parent
PACKAGES = ("sdk", "services", "broker", "observability")
NOBODY = 65534
SETPRIV = shutil.which("setpriv") or ""

# A launcher of its own: it finds out what isolation it can have, starts one instance, and says what became of it.
LAUNCHER = """
import asyncio, json, sys
from pathlib import Path
from algomesh_services.launcher import isolation
from algomesh_services.launcher.driver import LaunchSpec
from algomesh_services.launcher.process_driver import ProcessDriver
async def main(state, path, program, uids="1"):
    versions = Path(state, "versions")
    found = await isolation.prepare(
        hidden=[Path(state)], readable=[versions, *map(Path, path.split(":"))], uids=range(65535 - int(uids), 65535)
    )
    exits, logs = [], []
    driver = ProcessDriver(isolation=found, entry="zygote_entry:main", environment={"PYTHONPATH": path})
    async with driver:
        names = [f"i{n}" for n in range(int(uids))]
        specs = [LaunchSpec(instance=n, boot=program.encode(), log_path=Path(state, n)) for n in names]
        started = [await driver.launch(spec) for spec in specs]
        for process, name in zip(started, names):
            exits.append(str(await process.wait()))
            logs.append(Path(state, name).read_text())
    print(json.dumps({"level": found.level, "reason": found.reason, "exits": exits, "logs": logs}), file=sys.stderr)
asyncio.run(main(*sys.argv[1:]))
"""

# What an instance finds: imports that happen only now, and doors that should be shut.
LOOK = """
import json, os
def attempt(action):
    try: return str(action())
    except Exception as error: return type(error).__name__
facts = {
    "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(),
    "version": attempt(lambda: open(VERSIONS + "/code.py").read()),
    "write": attempt(lambda: open(VERSIONS + "/code.py", "w")),
    "secret": attempt(lambda: open(STATE + "/secret").read()),
    "state": attempt(lambda: os.listdir(STATE)),
    "home": attempt(lambda: os.listdir(HOME)),
    "closed": attempt(lambda: os.listdir(CLOSED)),
    "beside": attempt(lambda: os.stat(CLOSED + "/beside")),
    "log": attempt(lambda: open(STATE + "/i0").read()),
    "zygote": attempt(lambda: os.kill(os.getppid(), 0)),
    "again": attempt(lambda: os.setuid(0)),
}
def lazy():
    import colorsys, ssl, sqlite3, wave, lazy_module, algomesh_services.launcher.memory
    return lazy_module.value
facts["lazy"] = attempt(lazy)
print(json.dumps(facts))
"""


class House:
    """A folder only root may enter, with a state directory and code in it."""

    def __init__(self, folder: Path) -> None:
        self.closed = folder / "closed"
        self.state = self.closed / "state"
        self.modules = self.closed / "modules"
        (self.state / "versions").mkdir(parents=True)
        self.modules.mkdir()
        (self.state / "versions" / "code.py").write_text("version")
        (self.state / "secret").write_text("secret")
        (self.state / "secret").chmod(0o600)
        (self.closed / "beside").write_text("beside")
        (self.modules / "lazy_module.py").write_text("value = 'lazily'")
        shutil.copy(HERE / "zygote_entry.py", self.modules)
        for open_folder in (folder, self.modules, self.state / "versions"):
            open_folder.chmod(0o755)
        for secret_folder in (self.closed, self.state):
            secret_folder.chmod(0o700)

    def launch(
        self, *before: str, python: str = sys.executable, program: str | None = None, uids: int = 1
    ) -> dict[str, Any]:
        """Run a launcher and return what it reports."""
        names = {"STATE": self.state, "VERSIONS": self.state / "versions", "CLOSED": self.closed}
        names["HOME"] = Path(pwd.getpwuid(os.geteuid()).pw_dir)
        prefix = "".join(f"{name} = {str(path)!r}\n" for name, path in names.items())
        path = ":".join(filter(None, [str(self.modules), *os.environ.get("PYTHONPATH", "").split(":")]))
        command = [*before, python, "-P", "-c", LAUNCHER, str(self.state), path, prefix + (program or LOOK), str(uids)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")
        assert done.returncode == 0, done.stderr
        report: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
        return report


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def assert_kept_out(report: dict[str, Any]) -> None:
    assert (report["level"], report["reason"], report["exits"]) == ("namespace", "", ["exited with code 0"])
    facts = json.loads(report["logs"][0])
    assert (facts["uid"], facts["gid"], facts["groups"]) == (NOBODY, NOBODY, [])
    assert (facts["lazy"], facts["version"]) == ("lazily", "version")
    assert facts["write"] == "OSError"  # a read-only file system
    assert facts["secret"] == facts["log"] == facts["beside"] == "FileNotFoundError"
    assert facts["state"] == facts["home"] == facts["closed"] == "PermissionError"
    assert facts["zygote"] == facts["again"] == "PermissionError"


@pytest.mark.usefixtures("needs_root")
def test_an_instance_of_root_sees_its_code_and_no_secret(house: House) -> None:
    assert_kept_out(house.launch())


@pytest.mark.usefixtures("needs_root")
def test_python_and_the_sources_may_lie_in_a_home_that_only_root_may_enter(house: House) -> None:
    home = house.closed / "home"
    venv.create(home / "venv", symlinks=True)
    packages = next((home / "venv" / "lib").glob("python*/site-packages"))
    (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    for name in PACKAGES:
        shutil.copytree(SOURCES / name, home / name, ignore=shutil.ignore_patterns("catalog", "__pycache__"))
    # An editable install is such a file too; ours must come before the borrowed one's.
    (packages / "a_editable.pth").write_text(
        "\n".join(str(home / n) for n in ("sdk", "services", "broker", "observability"))
    )
    before = ["env", "-u", "PYTHONPATH"] if "PYTHONPATH" not in os.environ else []

    report = house.launch(*before, python=str(home / "venv" / "bin" / "python"))

    assert_kept_out(report)


@pytest.mark.usefixtures("needs_root")
def test_instances_get_uids_of_their_own_from_a_range(house: House) -> None:
    report = house.launch(program="import os, time; print(os.getuid()); time.sleep(0.5)", uids=3)

    assert sorted(map(int, report["logs"])) == [NOBODY - 2, NOBODY - 1, NOBODY]


@pytest.mark.usefixtures("needs_root")
def test_what_an_instance_forks_is_gone_also_under_another_uid(house: House) -> None:
    report = house.launch(
        program="import os, time\nif os.fork() == 0:\n os.setsid(); print(os.getpid()); time.sleep(60)"
    )

    assert report["exits"] == ["exited with code 0"]
    assert [pid for pid in report["logs"][0].split() if Path("/proc", pid).exists()] == []


@pytest.mark.skipif(not SETPRIV, reason="needs setpriv of util-linux")
@pytest.mark.usefixtures("needs_root")
def test_without_the_right_to_mount_the_reason_is_given_and_instances_still_run(house: House) -> None:
    report = house.launch(SETPRIV, "--bounding-set", "-sys_admin")

    assert report["level"] in {"uid", "none"}
    assert "CAP_SYS_ADMIN" in report["reason"]
    assert report["exits"] == ["exited with code 0"]
    facts = json.loads(report["logs"][0])
    assert facts["uid"] == (NOBODY if report["level"] == "uid" else 0)
    assert facts["lazy"] == "lazily"


@pytest.mark.skipif(not SETPRIV, reason="needs setpriv of util-linux")
@pytest.mark.usefixtures("needs_root")
def test_without_mounts_another_uid_is_used_where_it_can_read_the_code() -> None:
    with tempfile.TemporaryDirectory() as name:
        house = House(Path(name))
        for passable in (house.closed, house.state):
            passable.chmod(0o711)
        sources = map(Path, filter(None, os.environ.get("PYTHONPATH", "").split(":")))
        plan = plan_mounts(isolation.needed_paths(sources), [], uid=NOBODY)

        report = house.launch(*plan.wrap([SETPRIV, "--bounding-set", "-sys_admin"]))

    assert (report["level"], report["exits"]) == ("uid", ["exited with code 0"])
    assert "file modes alone" in report["reason"]
    facts = json.loads(report["logs"][0])
    assert (facts["uid"], facts["version"], facts["lazy"]) == (NOBODY, "version", "lazily")
    assert facts["secret"] == facts["log"] == facts["state"] == facts["home"] == "PermissionError"


@pytest.mark.usefixtures("needs_root")
def test_an_ordinary_user_is_told_that_code_is_mutually_trusted() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        house = House(folder)
        for each in [house.closed, *house.closed.rglob("*")]:
            os.chown(each, NOBODY, NOBODY)
        sources = map(Path, filter(None, os.environ.get("PYTHONPATH", "").split(":")))
        plan = plan_mounts(isolation.needed_paths(sources), [], uid=NOBODY)

        report = house.launch(*plan.wrap([], uid=NOBODY))

    assert report["level"] == "none"
    assert "mutually trusted" in report["reason"]
    assert report["exits"] == ["exited with code 0"]
    facts = json.loads(report["logs"][0])
    assert (facts["uid"], facts["secret"], facts["lazy"]) == (NOBODY, "secret", "lazily")


async def test_a_launcher_without_root_shares_its_uid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    found = await isolation.prepare(hidden=[tmp_path])

    assert found == Isolation(reason=found.reason)
    assert "mutually trusted" in found.reason


def test_a_plan_covers_what_is_closed_and_binds_what_is_needed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for name in ("home/venv/lib", "open/lib", "state/versions", "state/versions/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "home").chmod(0o700)
    names = ("home/venv", "home/venv/lib", "open/lib", "state/versions", "state/versions/deep")
    needed = [tmp_path / name for name in names]
    parents_are_open = all(folder.stat().st_mode & 1 for folder in tmp_path.parents)

    plan = plan_mounts(needed, [tmp_path / "state", tmp_path / "missing"], uid=NOBODY - 1)

    assert str(tmp_path / "state") in plan.cover
    assert str(tmp_path / "missing") not in plan.cover
    assert {str(tmp_path / "home/venv"), str(tmp_path / "state/versions")} <= set(plan.bind)
    assert str(tmp_path / "home/venv/lib") not in plan.bind
    if parents_are_open:
        assert set(plan.cover) == {str(tmp_path / "home"), str(tmp_path / "state")}
        assert str(tmp_path / "open/lib") not in plan.bind
