"""The process driver: real zygotes, real instances, and everything user code may do to them."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from algomesh.instance import descendants
from algomesh.instance.watch import Phase
from algomesh_services.launcher.driver import Driver, Exit, LaunchFailed, LaunchSpec, Process
from algomesh_services.launcher.forked_process import ForkedProcess
from algomesh_services.launcher.process_driver import ProcessDriver, zygote_environment
from tests.conditions import is_alive, until
from tests.integration.zygote_entry import ENTRY

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent
FOREVER = "import time\nwhile True: time.sleep(60)\n"
MIB = 1024 * 1024


def make_driver(folder: Path, **options: Any) -> ProcessDriver:
    path = f"{HERE}:{folder}:{os.environ.get('PYTHONPATH', '')}"
    return ProcessDriver(entry=ENTRY, environment={"PYTHONPATH": path}, **{"watch_interval_s": 0.05, **options})


@pytest_asyncio.fixture
async def driver(tmp_path: Path) -> AsyncIterator[ProcessDriver]:
    async with make_driver(tmp_path) as started:
        yield started


def spec(folder: Path, program: str, instance: str = "i1", **options: Any) -> LaunchSpec:
    return LaunchSpec(instance=instance, boot=program.encode(), log_path=folder / f"{instance}.log", **options)


async def run(driver: Driver, folder: Path, program: str, instance: str = "i1", **options: Any) -> tuple[Exit, str]:
    process = await driver.launch(spec(folder, program, instance, **options))
    async with asyncio.timeout(30):
        ended = await process.wait()
    return ended, (folder / f"{instance}.log").read_text()


def zygote_of(process: Process) -> int:
    assert isinstance(process, ForkedProcess)
    return process.link.pid


async def test_an_instance_runs_and_its_exit_is_known(driver: ProcessDriver, tmp_path: Path) -> None:
    ended, printed = await run(driver, tmp_path, "print('hello'); code = 3")

    assert ended == Exit(code=3, signal=None, reason="exit")
    assert str(ended) == "exited with code 3"
    assert printed == "hello\n"
    assert (tmp_path / "i1.log").stat().st_mode & 0o777 == 0o600


async def test_a_crash_is_told_from_an_exit(driver: ProcessDriver, tmp_path: Path) -> None:
    ended, _ = await run(driver, tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")

    assert ended == Exit(code=None, signal=signal.SIGSEGV, reason="crash")
    assert str(ended) == "was ended by SIGSEGV"


async def test_a_death_is_known_within_milliseconds(driver: ProcessDriver, tmp_path: Path) -> None:
    process = await driver.launch(spec(tmp_path, FOREVER))
    began_s = time.monotonic()

    os.kill(process.pid, signal.SIGKILL)
    ended = await process.wait()

    assert time.monotonic() - began_s < 0.25
    assert ended.reason == "crash"


async def test_a_run_that_holds_the_gil_past_its_deadline_is_killed(driver: ProcessDriver, tmp_path: Path) -> None:
    hang = "import time, re; watch.begin('r', time.monotonic_ns() + 300_000_000); re.match('(a+)+$', 'a' * 60 + 'b')"

    ended, _ = await run(driver, tmp_path, hang)

    assert (ended.reason, ended.signal) == ("timeout", signal.SIGKILL)
    assert "after the deadline" in str(ended)


async def test_a_run_within_its_deadline_is_left_alone(driver: ProcessDriver, tmp_path: Path) -> None:
    slow = (
        "import time\nfor n in range(4):\n watch.begin(n, time.monotonic_ns() + 10**10); time.sleep(.1); watch.end(n)"
    )

    ended, _ = await run(driver, tmp_path, slow)

    assert ended.reason == "exit"


async def test_memory_above_the_limit_is_killed(driver: ProcessDriver, tmp_path: Path) -> None:
    grow = "import time; kept = []\nwhile True: kept.append(b'x' * 10_000_000); time.sleep(0.01)"

    ended, _ = await run(driver, tmp_path, grow, memory_bytes=100 * MIB)

    assert (ended.reason, ended.signal) == ("memory_exceeded", signal.SIGKILL)
    assert "of the 100 MiB" in str(ended)


async def test_memory_of_forked_processes_counts(driver: ProcessDriver, tmp_path: Path) -> None:
    grow = "import os, time\nif os.fork() == 0:\n kept = b'x' * 150_000_000\nwhile True: time.sleep(60)"

    ended, _ = await run(driver, tmp_path, grow, memory_bytes=100 * MIB)

    assert ended.reason == "memory_exceeded"


async def test_memory_of_the_zygote_is_not_the_instances(driver: ProcessDriver, tmp_path: Path) -> None:
    (tmp_path / "heavy_module.py").write_text("data = bytearray(b'x' * 200_000_000)")
    process = await driver.launch(spec(tmp_path, FOREVER, preload=frozenset({"heavy_module"}), memory_bytes=100 * MIB))
    other = await driver.launch(
        spec(tmp_path, "mine = b'x' * 50_000_000\n" + FOREVER, "i2", preload=frozenset({"heavy_module"}))
    )

    await until(lambda: other.memory_bytes() > 45 * MIB)
    assert other.memory_bytes() < 70 * MIB
    assert process.memory_bytes() < 20 * MIB
    touched = "import heavy_module\nfor n in range(0, 200_000_000, 4096): heavy_module.data[n] = 1\n"
    copied = await driver.launch(spec(tmp_path, touched + FOREVER, "i3", preload=frozenset({"heavy_module"})))
    await until(lambda: copied.memory_bytes() > 180 * MIB)
    for each in (process, other, copied):
        each.kill("stopped")
        assert (await each.wait()).reason == "stopped"


async def test_terminate_lets_an_instance_drain(driver: ProcessDriver, tmp_path: Path) -> None:
    waits = "while True: time.sleep(0.05)\n"  # A signal just before a sleep is handled after it.
    drains = "import signal, time\ndef go(*_): raise SystemExit(0)\nsignal.signal(15, go)\nprint('up')\n" + waits
    process = await driver.launch(spec(tmp_path, drains))
    await until((tmp_path / "i1.log").read_text)

    process.terminate()

    assert await process.wait() == Exit(code=0, signal=None, reason="retired")


async def test_an_instance_that_ignores_sigterm_is_killed_for_the_reason_given(
    driver: ProcessDriver, tmp_path: Path
) -> None:
    ignores = "import signal; signal.signal(15, signal.SIG_IGN); print('up')\n" + FOREVER
    process = await driver.launch(spec(tmp_path, ignores))
    await until((tmp_path / "i1.log").read_text)

    process.terminate()
    process.kill("retired", "did not drain in time")
    process.kill("timeout")

    assert await process.wait() == Exit(code=None, signal=9, reason="retired", detail="did not drain in time")
    process.kill("timeout")
    process.terminate()
    assert process.memory_bytes() == 0


async def test_a_print_of_100_mb_leaves_the_tail_and_little_else(driver: ProcessDriver, tmp_path: Path) -> None:
    program = "for n in range(1_000_000): print('x' * 90, n)\nprint('the end')"

    ended, printed = await run(driver, tmp_path, program)

    kept = (tmp_path / "i1.log.1").read_text() + printed
    assert ended.reason == "exit"
    assert kept.endswith("999999\nthe end\n")
    assert 1 * MIB < len(kept) <= 12 * MIB
    assert (tmp_path / "i1.log.1").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "program",
    [
        "import os; os.closerange(0, 500)",
        "import signal\nfor s in range(1, 32):\n try: signal.signal(s, signal.SIG_IGN)\n except OSError: pass",
        "import os; os._exit(0)",
        "import os\nfor _ in range(50):\n if os.fork() == 0: os._exit(1)",
        "import os; os.setpgid(0, 0) if os.getpgrp() != os.getpid() else None; os.umask(0); os.chdir('/tmp')",
        "import os; os.ftruncate(1, 0)",
        "import sys; sys.stdout.close(); sys.stderr.close()",
        "import threading, time; threading.Thread(target=time.sleep, args=(100,)).start()",
        "page[:] = b'\\0' * len(page)",
    ],
)
async def test_what_user_code_does_to_itself_harms_nobody_else(
    driver: ProcessDriver, tmp_path: Path, program: str
) -> None:
    neighbour = await driver.launch(spec(tmp_path, FOREVER, "neighbour"))

    ended, _ = await run(driver, tmp_path, program)
    after, printed = await run(driver, tmp_path, "print('fine')", "i2")

    assert ended.reason == "exit"
    assert (after.code, printed) == (0, "fine\n")
    assert is_alive(neighbour.pid)


async def test_modules_that_must_not_be_forked_are_left_to_the_instances(driver: ProcessDriver, tmp_path: Path) -> None:
    source = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nvalue = 5"
    (tmp_path / "threaded_module.py").write_text(source)
    unfit = frozenset({"threaded_module"})

    ended, printed = await run(driver, tmp_path, "import threaded_module; print(threaded_module.value)", preload=unfit)

    assert (ended.code, printed) == (0, "5\n")
    assert "started 1 threads" in driver.unfit[unfit]


async def test_modules_that_take_too_long_are_not_preloaded(tmp_path: Path) -> None:
    (tmp_path / "endless_module.py").write_text("import time; time.sleep(600)")
    async with make_driver(tmp_path, ready_timeout_s=1.5) as driver:
        ended, _ = await run(driver, tmp_path, "pass", preload=frozenset({"endless_module"}))

        assert ended.code == 0
        assert "took longer" in driver.unfit[frozenset({"endless_module"})]


async def test_an_entry_that_cannot_be_imported_is_a_launch_that_failed(tmp_path: Path) -> None:
    async with ProcessDriver(entry="no_such_module:main") as driver:
        with pytest.raises(LaunchFailed, match="no_such_module"):
            await driver.launch(spec(tmp_path, "pass"))


async def test_a_python_that_is_not_there_is_a_launch_that_failed(tmp_path: Path) -> None:
    async with make_driver(tmp_path, python="/no/such/python") as driver:
        with pytest.raises(LaunchFailed, match="No such file"):
            await driver.launch(spec(tmp_path, "pass"))


async def test_what_cannot_be_launched_is_said_in_a_sentence(driver: ProcessDriver, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LaunchFailed, match=r"log .* cannot be written"):
        await driver.launch(LaunchSpec(instance="i1", boot=b"", log_path=tmp_path / "file" / "x.log"))
    with pytest.raises(LaunchFailed, match="bytes of"):
        await driver.launch(spec(tmp_path, "x" * 200_000))
    await driver.launch(spec(tmp_path, FOREVER))
    with pytest.raises(LaunchFailed, match="runs already"):
        await driver.launch(spec(tmp_path, FOREVER))


async def test_a_cancelled_launch_leaves_no_instance(driver: ProcessDriver, tmp_path: Path) -> None:
    await driver.warm(frozenset())
    first = await driver.launch(spec(tmp_path, FOREVER, "first"))

    for number in range(20):
        launch = asyncio.create_task(driver.launch(spec(tmp_path, FOREVER, f"c{number}")))
        for _ in range(number % 4 + 1):
            await asyncio.sleep(0)
        launch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            process = await launch
            process.kill("stopped")

    last = await driver.launch(spec(tmp_path, FOREVER, "last"))
    await until(lambda: set(descendants.children(zygote_of(first))) == {first.pid, last.pid})


async def test_the_zygote_that_dies_takes_its_instances_with_it_and_is_started_again(
    driver: ProcessDriver, tmp_path: Path
) -> None:
    leaves = (
        "import os, time\n"
        "if os.fork() == 0:\n os.setsid()\n if os.fork() == 0: print(os.getpid())\nwhile True: time.sleep(60)"
    )
    process = await driver.launch(spec(tmp_path, leaves))
    await until(lambda: (tmp_path / "i1.log").read_text().endswith("\n"))
    left = int((tmp_path / "i1.log").read_text())

    os.kill(zygote_of(process), signal.SIGKILL)

    assert (await process.wait()).reason == "zygote_lost"
    await until(lambda: not is_alive(left))
    ended, _ = await run(driver, tmp_path, "pass", "i2")
    assert ended.code == 0


async def test_a_launch_finds_another_zygote_when_its_own_has_just_died(driver: ProcessDriver, tmp_path: Path) -> None:
    process = await driver.launch(spec(tmp_path, FOREVER))

    os.kill(zygote_of(process), signal.SIGKILL)
    ended, _ = await run(driver, tmp_path, "pass", "i2")

    assert ended.code == 0


async def test_an_unused_zygote_ends_and_comes_back(tmp_path: Path) -> None:
    async with make_driver(tmp_path, zygote_idle_s=0.2, watch_interval_s=0.01) as driver:
        process = await driver.launch(spec(tmp_path, "pass"))
        await process.wait()

        await until(lambda: not is_alive(zygote_of(process)), 10)

        ended, _ = await run(driver, tmp_path, "pass", "i2")
        assert ended.code == 0


async def test_many_instances_start_and_end_side_by_side(driver: ProcessDriver, tmp_path: Path) -> None:
    results = await asyncio.gather(*(run(driver, tmp_path, f"code = {n}", f"n{n}") for n in range(40)))

    assert [ended.code for ended, _ in results] == list(range(40))
    fds = len(list(Path("/proc/self/fd").iterdir()))
    await asyncio.gather(*(run(driver, tmp_path, "pass", f"m{n}") for n in range(20)))
    assert len(list(Path("/proc/self/fd").iterdir())) <= fds


async def test_closing_the_driver_leaves_nothing(tmp_path: Path) -> None:
    stubborn = (
        "import os, signal, time\n"
        "for _ in range(3): os.fork()\n"
        "os.getpid() == os.getsid(0) or os.setsid()\nsignal.signal(15, signal.SIG_IGN)\nprint(os.getpid())\n"
    )
    async with make_driver(tmp_path) as driver:
        process = await driver.launch(spec(tmp_path, stubborn + FOREVER))
        await until(lambda: len((tmp_path / "i1.log").read_text().split()) == 8)
        began_s = time.monotonic()

    assert time.monotonic() - began_s < 3
    assert (await process.wait()).reason == "stopped"
    assert not [pid for pid in map(int, (tmp_path / "i1.log").read_text().split()) if is_alive(pid)]
    assert not is_alive(zygote_of(process))


LAUNCHER = """
import asyncio, json, sys
from pathlib import Path
from algomesh_services.launcher.driver import LaunchSpec
from algomesh_services.launcher.process_driver import ProcessDriver
async def main(folder, path, program):
    async with ProcessDriver(entry="zygote_entry:main", environment={"PYTHONPATH": path}) as driver:
        spec = LaunchSpec(instance="i", boot=program.encode(), log_path=Path(folder, "i.log"))
        process = await driver.launch(spec)
        print(json.dumps([process.pid, process.link.pid]), file=sys.stderr, flush=True)
        print(str(await process.wait()))
asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_launcher_killed_with_sigkill_leaves_nothing(tmp_path: Path) -> None:
    stubborn = "import os, signal\nos.fork()\nos.getpid() == os.getsid(0) or os.setsid()\nsignal.signal(15, 1)\n"
    path = f"{HERE}:{os.environ.get('PYTHONPATH', '')}"
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path), path, stubborn + "print(os.getpid())\n" + FOREVER],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert launcher.stderr is not None
    with launcher.stderr as out:
        pids = json.loads(await asyncio.to_thread(out.readline))
        await until(lambda: len((tmp_path / "i.log").read_text().split()) == 2)
        pids += map(int, (tmp_path / "i.log").read_text().split())

        launcher.kill()
        launcher.wait()

    await until(lambda: not [pid for pid in pids if is_alive(pid)], 3)


async def test_phases_and_start_are_on_the_watch_page(driver: ProcessDriver, tmp_path: Path) -> None:
    await driver.warm(frozenset())

    process = await driver.launch(spec(tmp_path, FOREVER))

    await until(lambda: process.watch.phase is Phase.IMPORTING)
    fork_to_entry_ms = (process.watch.began_ns(Phase.IMPORTING) - process.watch.began_ns(Phase.FORKED)) / 1e6
    assert 0 < fork_to_entry_ms < 1000


def test_zygotes_get_no_secrets_of_the_launchers_environment() -> None:
    passed = zygote_environment({"PATH": "/bin", "LC_ALL": "C", "ALGOMESH_POSTGRES": "secret", "AWS_SECRET": "x"})

    assert set(passed) == {
        "PATH",
        "LC_ALL",
        "OPENBLAS_NUM_THREADS",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
    }
