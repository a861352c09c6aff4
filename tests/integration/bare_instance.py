"""An instance without zygote and launcher: the boot record comes on standard input."""

import mmap
import sys

from algomesh.instance import boot


def main() -> int:
    """Be one instance; return the exit code."""
    return boot.main(sys.stdin.buffer.read(), mmap.mmap(-1, 4096))
