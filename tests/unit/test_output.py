"""What user code prints, in an instance."""

import os
from pathlib import Path

from algomesh.instance.output import LogStream


def test_a_child_that_was_forked_in_mid_write_can_print(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    stream = LogStream(fd)
    stream._lock.acquire()  # as another thread would, whom a fork does not take along

    stream.renew_lock()
    stream.write("alive\n")

    os.close(fd)
    assert (tmp_path / "log").read_text().endswith(" - alive\n")
