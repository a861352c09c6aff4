"""A version in another language: the forked child becomes the version's own program, which goes on by itself.

What the zygote gave the child stays: session, uid, limits, the log as its output, its death with its launcher. The
program starts in the version's folder, with little in its environment, and reads the boot record as one line of JSON
from its stdin, which then ends. docs/protocol.md says what it must do.
"""

import contextlib
import fcntl
import os
import signal
import sys
from typing import Final

from algomesh_broker.boot import LOAD_FAILED_CODE, Boot, failure_line

_PIPE_BYTES: Final = 256 * 1024
_KEPT: Final = frozenset(
    [
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "LD_LIBRARY_PATH"),
        *("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"),
    ]
)


def become(boot: Boot) -> int:
    """Turn this process into the version's program. Returns only when that fails, with the exit code."""
    program = boot.command[0]
    environment = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("LC_")}
    environment.setdefault("PATH", os.defpath)
    try:
        os.chdir(boot.folder)
        _hand_over(boot.as_line())
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and what is ignored stays so
            signal.signal(number, signal.SIG_DFL)
        os.execvpe(program, boot.command, environment)  # noqa: S606  # the version's own program; no shell is wanted
    except OSError as error:
        where = f"the PATH {environment['PATH']}" if "/" not in program else "the version's folder"
        missing = isinstance(error, FileNotFoundError) and not os.path.exists(program)  # noqa: PTH110
        why = f"it is not in {where}" if missing else (error.strerror or str(error))
        return _give_up(f"its command {program!r} cannot be run: {why}")


def _hand_over(line: bytes) -> None:
    """Make the record what stdin has, and its end after it. Raises OSError."""
    reading, writing = os.pipe()
    with contextlib.suppress(OSError):
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    os.set_blocking(writing, False)  # one that does not fit must fail here, and not hang
    written = os.write(writing, line)
    os.close(writing)
    if written != len(line):
        raise OSError(f"its boot record has {len(line)} bytes, and the pipe takes {written}")
    os.dup2(reading, 0)
    os.close(reading)


def _give_up(sentence: str) -> int:
    print(failure_line("load_failed", sentence))  # noqa: T201  # to the log, where the launcher reads it
    sys.stdout.flush()
    return LOAD_FAILED_CODE
