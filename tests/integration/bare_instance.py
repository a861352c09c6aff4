"""An instance as a child process without zygote and launcher: the boot record comes on standard input."""

import mmap
import os
import sys

from algomesh.instance import boot

if __name__ == "__main__":
    os._exit(boot.main(sys.stdin.buffer.read(), mmap.mmap(-1, 4096)))
