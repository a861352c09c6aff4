"""The zygote, spoken to over its socket as the launcher does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Self

import pytest

from algomesh.instance import control, descendants, watch
from algomesh.instance.watch import WatchReader
from tests.integration.zygote_entry import ENTRY

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent
FOREVER = "import time\nwhile True: time.sleep(60)\n"


def until(condition: Callable[[], object], limit_s: float = 20.0) -> None:
    give_up = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < give_up, "the condition did not come true"
        time.sleep(0.005)


def lives(pid: int) -> bool:
    return not descendants.is_zombie(pid)


def numbers(log: Path) -> list[int]:
    return [int(word) for word in log.read_text().split()] if log.exists() else []


class Child:
    def __init__(self, pid: int, pidfd: int, log: Path, reader: WatchReader) -> None:
        self.pid, self.pidfd, self.log, self.watch = pid, pidfd, log, reader

    def kill(self, number: int = signal.SIGKILL) -> None:
        signal.pidfd_send_signal(self.pidfd, number)


class Zygote:
    """A zygote and the launcher's end of its socket."""

    def __init__(self, folder: Path, *preload: str) -> None:
        self.folder = folder
        self.children: list[Child] = []
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(30)
        with theirs:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "algomesh.instance.zygote", "--entry", ENTRY),
                    *("--preload", ",".join(preload), "--control-fd", str(theirs.fileno())),
                ],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": f"{HERE}:{folder}:{os.environ.get('PYTHONPATH', '')}"},
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.control.close()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
            for child in self.children:
                os.close(child.pidfd)

    def hear(self) -> control.Report:
        received = control.receive_report(self.control)
        assert received is not None, "the zygote hung up"
        for fd in received[1]:
            os.close(fd)
        return received[0]

    def fork(self, program: str, settings: control.Settings | None = None) -> Child:
        name = f"i{len(self.children)}"
        log = self.folder / f"{name}.log"
        log_fd = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        watch_fd, page = watch.create_page()
        order = control.encode_order(name, settings or control.Settings(), program.encode())
        control.send_order(self.control, order, [log_fd, watch_fd])
        os.close(log_fd)
        os.close(watch_fd)
        received = control.receive_report(self.control)
        assert received is not None
        report, fds = received
        assert isinstance(report, control.Spawned), report
        child = Child(report.pid, fds[0], log, WatchReader(page))
        self.children.append(child)
        return child

    def exit_of(self, child: Child) -> int:
        """Wait for the report of its end and return the exit code, or the negative signal."""
        report = self.hear()
        assert isinstance(report, control.Exited)
        assert report.pid == child.pid
        return os.waitstatus_to_exitcode(report.status)


@pytest.fixture
def zygote(tmp_path: Path) -> Iterator[Zygote]:
    with Zygote(tmp_path) as started:
        assert started.hear() == control.Ready()
        yield started


def test_an_instance_runs_the_entry_and_its_code_is_reported(zygote: Zygote) -> None:
    child = zygote.fork("print('hello'); code = 7")

    assert zygote.exit_of(child) == 7
    assert child.log.read_text() == "hello\n"


def test_an_exception_goes_to_the_log_and_gives_70(zygote: Zygote) -> None:
    child = zygote.fork("raise RuntimeError('no good')")

    assert zygote.exit_of(child) == 70
    assert child.log.read_text().rstrip().endswith("RuntimeError: no good")


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("raise SystemExit(5)", 5),
        ("import sys; sys.exit('bye')", 1),
        ("import os; os._exit(9)", 9),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("import ctypes; ctypes.string_at(0)", -11),
        ("raise KeyboardInterrupt", 70),
        ("import os; os.close(0); os.close(1); os.close(2); print('still here')", 0),
        ("import os; os.closerange(0, 1000)", 0),
        ("import signal\nfor s in (15, 17, 2, 1): signal.signal(s, signal.SIG_IGN)", 0),
        ("import os\nfor _ in range(20):\n    if os.fork() == 0: os._exit(0)", 0),
        ("import os\nif os.fork() == 0: raise ValueError('in a fork')", 0),
        ("print('x' * 10_000_000)", 0),
        ("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))", 0),
    ],
)
def test_the_zygote_survives_what_instances_do(zygote: Zygote, program: str, code: int) -> None:
    child = zygote.fork(program)
    assert zygote.exit_of(child) == code

    after = zygote.fork("print('fine')")

    assert zygote.exit_of(after) == 0
    assert after.log.read_text() == "fine\n"


def test_a_crash_leaves_the_stack_in_the_log(zygote: Zygote) -> None:
    child = zygote.fork("import ctypes; ctypes.string_at(0)")

    assert zygote.exit_of(child) == -signal.SIGSEGV
    assert "Segmentation fault" in child.log.read_text()


def test_what_is_printed_after_closing_2_goes_to_the_log_and_not_into_the_next_socket(zygote: Zygote) -> None:
    child = zygote.fork(
        "import os, socket, sys\n"
        "os.close(1); os.close(2)\n"
        "a, b = socket.socketpair(); b.setblocking(False)\n"
        "print('to stderr', file=sys.stderr); print('to stdout')\n"
        "try: print('leaked', b.recv(100))\n"
        "except BlockingIOError: pass\n"
    )

    assert zygote.exit_of(child) == 0
    assert child.log.read_text() == "to stderr\nto stdout\n"


def test_a_child_has_nothing_of_the_zygote(zygote: Zygote) -> None:
    child = zygote.fork(
        "import json, os, signal\n"
        "fds = {}\n"
        "for n in os.listdir('/proc/self/fd'):\n"
        "    try: fds[n] = os.readlink(f'/proc/self/fd/{n}')\n"
        "    except OSError: pass\n"
        "print(json.dumps({'fds': fds, 'sid': os.getsid(0), 'pid': os.getpid(), 'group': os.getpgrp(),\n"
        "  'blocked': len(signal.pthread_sigmask(0, ())), 'term': signal.getsignal(15).name,\n"
        "  'chld': signal.getsignal(17).name, 'status': open('/proc/self/status').read(),\n"
        "  'score': open('/proc/self/oom_score_adj').read(), 'cwd': os.getcwd()}))"
    )

    assert zygote.exit_of(child) == 0
    facts = json.loads(child.log.read_text())
    others = {target for target in facts["fds"].values() if "watch" not in target and not target.endswith(".log")}
    assert others == {"/dev/null"}
    assert facts["sid"] == facts["pid"] == facts["group"] == child.pid
    assert (facts["blocked"], facts["term"], facts["chld"], facts["cwd"]) == (0, "SIG_DFL", "SIG_DFL", "/")
    assert "NoNewPrivs:\t1" in facts["status"]
    assert "CapEff:\t0000000000000000" in facts["status"]
    assert "CapBnd:\t0000000000000000" in facts["status"] or os.geteuid() != 0
    assert int(facts["score"]) >= 500


def test_environment_and_threads_are_the_childs_own(zygote: Zygote) -> None:
    settings = control.Settings(environment={"CUDA_VISIBLE_DEVICES": "3"}, threads=2, nice=1)
    child = zygote.fork(
        "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'], os.nice(0))", settings
    )

    assert zygote.exit_of(child) == 0
    assert child.log.read_text() == "3 2 1\n"


def test_siblings_draw_different_random_numbers(tmp_path: Path) -> None:
    with Zygote(tmp_path, "numpy.random", "random") as zygote:
        assert zygote.hear() == control.Ready()
        for _ in range(2):
            child = zygote.fork("import random, numpy; print(random.random(), numpy.random.rand())")
            assert zygote.exit_of(child) == 0

        first, second = (set(child.log.read_text().split()) for child in zygote.children)

        assert not first & second


def test_credentials_of_one_instance_are_not_in_the_memory_of_the_next(zygote: Zygote) -> None:
    padding = "x" * 60_000  # so that the second, shorter order does not overwrite the first in the zygote's buffer
    settings = control.Settings(environment={"PADDING": padding, "TOKEN": "environment-" + "s3cret" * 3})
    first = zygote.fork(f"{FOREVER}# {padding[:50_000]} record-" + "s3cret" * 3, settings)
    second = zygote.fork(
        "import re\n"
        "found = set()\n"
        "with open('/proc/self/maps') as maps, open('/proc/self/mem', 'rb') as memory:\n"
        "    for line in maps:\n"
        "        span, mode, *_ = line.split()\n"
        "        if 'r' not in mode or '[v' in line: continue\n"
        "        start, end = (int(x, 16) for x in span.split('-'))\n"
        "        try: memory.seek(start); data = memory.read(end - start)\n"
        "        except (OSError, ValueError, OverflowError): continue\n"
        "        found |= set(re.findall(rb'(?:record|environment|mine)-(?:s3cr' b'et){3}', data))\n"
        "print(found)\n# mine-s3cr" + "ets3crets3cret"
    )

    assert zygote.exit_of(second) == 0
    assert second.log.read_text() == "{b'mine-s3crets3crets3cret'}\n"
    first.kill()
    assert zygote.exit_of(first) == -9


def standby_of(zygote: Zygote) -> int:
    """The pid of the child that waits for the next order, once it is there."""

    instances = {child.pid for child in zygote.children}  # which bear the name too, until they have read their order

    def found() -> list[int]:
        below = set(descendants.children(zygote.process.pid)) - instances
        return [pid for pid in below if name_of(pid) == "standby"]

    until(found)
    return found()[0]


def says(log: Path, text: str) -> bool:
    return log.read_text() == text


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_the_next_instance_is_forked_ahead(zygote: Zygote) -> None:
    first, second = standby_of(zygote), 0

    child = zygote.fork("print('here')")

    assert child.pid == first
    assert zygote.exit_of(child) == 0
    assert child.log.read_text() == "here\n"
    second = standby_of(zygote)
    assert second != first


def test_orders_that_come_faster_than_standbys_are_forked_for(zygote: Zygote) -> None:
    standby_of(zygote)

    children = [zygote.fork(f"print({number}, flush=True)\n" + FOREVER) for number in range(3)]

    for number, child in enumerate(children):
        until(partial(says, child.log, f"{number}\n"))
        child.kill()
        assert zygote.exit_of(child) == -signal.SIGKILL


def test_an_order_survives_the_death_of_the_standby(zygote: Zygote) -> None:
    standby = standby_of(zygote)
    os.kill(standby, signal.SIGKILL)
    until(lambda: not lives(standby))

    child = zygote.fork("print('another')")

    assert child.pid != standby
    assert zygote.exit_of(child) == 0
    assert child.log.read_text() == "another\n"


def test_a_standby_that_dies_is_replaced_and_is_nobodys_exit(zygote: Zygote) -> None:
    standby = standby_of(zygote)

    os.kill(standby, signal.SIGKILL)

    until(lambda: not lives(standby))
    assert standby_of(zygote) != standby
    child = zygote.fork("code = 7")
    assert zygote.exit_of(child) == 7  # and not a report about the standby before it


def test_the_standby_outlives_neighbours_and_dies_with_the_zygote(tmp_path: Path) -> None:
    with Zygote(tmp_path) as zygote:
        assert zygote.hear() == control.Ready()
        neighbour = zygote.fork(FOREVER)
        standby = standby_of(zygote)
        neighbour.kill()
        assert zygote.exit_of(neighbour) == -signal.SIGKILL
        assert lives(standby)

        zygote.process.kill()

        until(lambda: not lives(standby))


LEAVE_BEHIND = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def stay():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(os.getpid())
    while True: time.sleep(60)
if os.fork() == 0: stay()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        stay()
    os._exit(0)
import subprocess
shell = subprocess.Popen(["sleep", "1000"], start_new_session=True)
print(shell.pid)
"""


def test_what_an_instance_leaves_behind_is_gone_when_its_exit_is_reported(zygote: Zygote) -> None:
    bystander = zygote.fork(LEAVE_BEHIND + FOREVER)
    until(lambda: len(numbers(bystander.log)) == 3)
    child = zygote.fork(LEAVE_BEHIND + FOREVER)
    until(lambda: len(numbers(child.log)) == 3)

    child.kill()
    assert zygote.exit_of(child) == -9

    assert not [pid for pid in numbers(child.log) if lives(pid)]
    assert all(lives(pid) for pid in [bystander.pid, *numbers(bystander.log)])


FORK_BOMB = """
import os, sys, time
pid = os.getpid()
give_up = time.monotonic() + 20
print(pid)
while time.monotonic() < give_up:  # each forks, changes its session and goes; a few stay
    try: child = os.fork()
    except OSError: continue
    if child:
        if os.getpid() == pid or child % 8 == 0: time.sleep(0.05)
        if os.getpid() != pid: os._exit(0)
    else:
        os.setsid()
"""


def test_a_fork_bomb_loses(zygote: Zygote) -> None:
    child = zygote.fork(FORK_BOMB)
    until(lambda: len(descendants.children(child.pid)) > 1)

    child.kill()

    assert zygote.exit_of(child) == -9
    assert descendants.children(zygote.process.pid) == []


@pytest.mark.parametrize("number", [None, signal.SIGTERM])
def test_all_die_when_the_launcher_goes_or_says_so(tmp_path: Path, number: int | None) -> None:
    with Zygote(tmp_path) as zygote:
        assert zygote.hear() == control.Ready()
        children = [zygote.fork(LEAVE_BEHIND + FOREVER), zygote.fork(FORK_BOMB)]
        until(lambda: len(numbers(children[0].log)) == 3 and numbers(children[1].log))
        pids = [zygote.process.pid, *(child.pid for child in children), *numbers(children[0].log)]
        began_s = time.monotonic()

        if number is None:
            zygote.control.close()
        else:
            zygote.process.send_signal(number)
        zygote.process.wait(20)

        assert time.monotonic() - began_s < 3
        assert not [pid for pid in pids if lives(pid)]


def test_a_launcher_that_goes_while_modules_are_imported_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "slow_import.py").write_text(
        "import time, pathlib; pathlib.Path(__file__ + '.on').touch(); time.sleep(60)"
    )
    program = (
        "import socket, subprocess, sys, time\n"
        "ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "z = subprocess.Popen([sys.executable, '-P', '-m', 'algomesh.instance.zygote', '--preload', 'slow_import',"
        " '--control-fd', str(theirs.fileno())], pass_fds=[theirs.fileno()])\n"
        "print(z.pid, flush=True); time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    launcher = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
    assert launcher.stdout is not None
    with launcher.stdout as out:
        zygote = int(out.readline())
    until((tmp_path / "slow_import.py.on").exists)

    launcher.kill()
    launcher.wait()

    until(lambda: not lives(zygote), 3)


def test_instances_die_with_a_killed_zygote(tmp_path: Path) -> None:
    with Zygote(tmp_path) as zygote:
        assert zygote.hear() == control.Ready()
        child = zygote.fork(FOREVER)

        zygote.process.kill()

        until(lambda: not lives(child.pid), 3)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", "1 threads"),
        ("import nothing_of_that_name", "nothing_of_that_name"),
        ("raise BaseException('odd')", "odd"),
        ("raise SystemExit(3)", "SystemExit"),
        ("import os; os._exit(4)", None),
    ],
)
def test_modules_that_must_not_be_forked_are_named(tmp_path: Path, source: str, said: str | None) -> None:
    (tmp_path / "unfit_module.py").write_text(source)
    with Zygote(tmp_path, "unfit_module") as zygote:
        if said is None:
            assert control.receive_report(zygote.control) is None
        else:
            report = zygote.hear()
            assert isinstance(report, control.Unfit)
            assert said in report.reason
            assert zygote.process.wait(10) == 3


def test_a_thread_that_ends_at_once_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "brief_module.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(.05,)).start()"
    )
    with Zygote(tmp_path, "brief_module") as zygote:
        assert zygote.hear() == control.Ready()


def test_torch_can_be_preloaded_and_gets_its_threads_in_the_child(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with Zygote(tmp_path, "torch", "numpy") as zygote:
        assert zygote.hear() == control.Ready()
        program = (
            "import torch\nx = torch.ones(500, 500)\n"
            "print(torch.get_num_threads(), float((x @ x).sum()), torch.rand(1).item())"
        )
        for _ in range(2):
            assert zygote.exit_of(zygote.fork(program, control.Settings(threads=2))) == 0

        first, second = (child.log.read_text().split() for child in zygote.children)
        assert first[:2] == second[:2] == ["2", "125000000.0"]
        assert first[2] != second[2]


def test_an_order_that_is_too_large_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ValueError, match="200"):
        control.encode_order("i", control.Settings(), b"x" * 200_000)


def test_the_largest_order_arrives(zygote: Zygote) -> None:
    program = "print(1)\n#"
    spare = control.MAX_ORDER_BYTES - len(control.encode_order("i0", control.Settings(), program.encode()))
    child = zygote.fork(program + "x" * spare)

    assert zygote.exit_of(child) == 0
    assert child.log.read_text() == "1\n"


def test_a_subreaper_kills_what_it_adopted_and_spares_what_it_is_told_to() -> None:
    program = (
        "import os, subprocess, sys\n"
        "from algomesh.instance import descendants, prctl\n"
        "prctl.become_subreaper()\n"
        "kept = subprocess.Popen(['sleep', '1000'])\n"
        "subprocess.run(['sh', '-c', 'setsid sleep 1000 & setsid sh -c \"sleep 1000 & sleep 1000\" &'])\n"
        "while len(descendants.descendants([os.getpid()])) < 6: pass\n"
        "left = descendants.kill_descendants(spare=[kept.pid])\n"
        "assert left == [], left\n"
        "assert descendants.children(os.getpid()) == [kept.pid]\n"
        "assert descendants.kill_descendants() == []\n"
        "assert descendants.children(os.getpid()) == []\n"
    )

    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_orphans_are_told_from_own_children() -> None:
    program = (
        "import os, subprocess, sys\n"
        "from algomesh.instance import descendants, prctl\n"
        "prctl.become_subreaper()\n"
        "subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "child = 'import os; from algomesh.instance import prctl; prctl.set_no_new_privileges(); os.setsid();'\n"
        'child += \'import subprocess; subprocess.Popen(["sleep", "999"])\'\n'
        "subprocess.run([sys.executable, '-c', child])\n"
        "found = descendants.orphans(0)\n"
        "names = [open(f'/proc/{pid}/cmdline').read() for pid in found]\n"
        "assert names == ['sleep\\0999\\0'], names\n"
        "descendants.kill_descendants()\n"
    )

    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
