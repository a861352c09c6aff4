"""What user code prints, in an instance."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from algomesh.context import RunContext, enter, leave
from algomesh.instance.output import LogStream
from algomesh.transport import Origin


@contextlib.contextmanager
def running(run: str) -> Iterator[None]:
    token = enter(RunContext(None, Origin(run, run, "k~me", 0, 1, float("inf"))))
    yield
    leave(token)


def test_a_child_that_was_forked_in_mid_write_can_print(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    stream = LogStream(fd)
    stream._lock.acquire()  # as another thread would, whom a fork does not take along

    stream.renew_lock()
    stream.write("alive\n")

    os.close(fd)
    assert (tmp_path / "log").read_text().endswith(" - alive\n")


def test_a_flush_leaves_the_unfinished_lines_of_other_runs_alone(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    stream = LogStream(fd)

    def print_in_run(text: str) -> None:
        with running("r1"):
            stream.write(text)

    print_in_run("got")
    stream.write("progress")
    stream.flush()
    print_in_run(" 1\nand")
    stream.finish()

    os.close(fd)
    lines = [line.split(" ", 1)[1] for line in (tmp_path / "log").read_text().splitlines()]
    assert lines == ["- progress", "r1 got 1", "r1 and"]
