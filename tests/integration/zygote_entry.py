"""The entry of instances in tests of the zygote and the driver: the boot record is a Python program."""

import mmap
import sys
import time

from algomesh.instance.watch import Phase, WatchWriter

ENTRY = "zygote_entry:main"


def main(boot: bytes, page: mmap.mmap) -> int:
    """Run `boot` with `watch` in its names; the program may set `code`."""
    entered_ns = time.monotonic_ns()
    writer = WatchWriter(page)
    writer.enter(Phase.IMPORTING, entered_ns)
    names = {"watch": writer, "page": page, "code": 0}
    exec(compile(boot, "<boot>", "exec"), names)
    code = names["code"]
    assert isinstance(code, int)
    sys.stdout.flush()
    return code
