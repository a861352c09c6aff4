"""What a forked child does between the zygote and the instance's entry: become a process of its own, with less power.

Called by the zygote right after the fork, with all signals blocked. From there on the child has nothing of the
zygote's: no descriptor but its log and its watch page, its own session, its own seeds, and, where the launcher is
root, another uid without any capability. It dies with the zygote. It never returns: it ends with the entry's
code, or 70 when the entry raised, after the traceback has gone to the log.
"""

import contextlib
import faulthandler
import gc
import mmap
import os
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Final, NoReturn

from algomesh.instance import control, prctl, watch

Entry = Callable[[bytes, mmap.mmap], int]

FAILED_CODE: Final = 70  # EX_SOFTWARE of sysexits.h
_OOM_SCORE_STEP = 500


def run(entry: Entry, order: memoryview, log_fd: int, watch_fd: int, *, zygote: int, began_ns: int) -> NoReturn:
    """Turn the forked process into an instance, call `entry` with the boot record and the watch page, and exit."""
    code = FAILED_CODE
    try:
        os.setsid()
        _redirect(log_fd)
        page = _keep_only(watch_fd)
        watch.WatchWriter(page).enter(watch.Phase.FORKED, began_ns)
        settings, boot = control.read_private(order)
        prctl.set_process_name(control.read_head(order))
        order[:] = bytes(len(order))
        order.release()
        _limit(settings)
        _give_up_power(settings)
        _die_with(zygote)
        _restore_signals()
        _make_own(settings)
        code = entry(boot, page)
    except SystemExit as error:
        code = _code_of(error)
    except BaseException:  # whatever it is, it ends here and must not reach the zygote's loop
        with contextlib.suppress(Exception):
            traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code if isinstance(code, int) else FAILED_CODE)


def _redirect(log_fd: int) -> None:
    """Send everything printed to the log, also by C code and by programs that are started."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)


def _keep_only(watch_fd: int) -> mmap.mmap:
    """Close every descriptor above 2 but the watch page, map that, and make the text streams anew."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  # whose own descriptor is closed by now
        if (fd := int(name)) > 2 and fd != watch_fd:
            with contextlib.suppress(OSError):
                os.close(fd)
    page = watch.open_page(watch_fd)
    os.close(watch_fd)
    # Python's streams have a descriptor of their own: code that closes 1 or 2 must not make the next socket,
    # which gets the freed number, the place where tracebacks are written.
    sys.stdout = sys.__stdout__ = _text_stream()  # type: ignore[misc]  # final in typeshed; this is a new process
    sys.stderr = sys.__stderr__ = _text_stream()  # type: ignore[misc]
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    return page


def _text_stream() -> TextIOWrapper:
    return open(os.dup(1), "w", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: PTH123


def _limit(settings: control.Settings) -> None:
    """Set what needs the zygote's power: priority, no core dumps, first choice of the kernel's out-of-memory killer."""
    if settings.nice:
        os.nice(settings.nice)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if settings.max_processes is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        most = settings.max_processes if hard == resource.RLIM_INFINITY else min(settings.max_processes, hard)
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        score.write_text(str(min(1000, int(score.read_text()) + _OOM_SCORE_STEP)))


def _give_up_power(settings: control.Settings) -> None:
    """Take the uid asked for; no capability and no way to get one is left in any case."""
    if os.geteuid() == 0:
        prctl.drop_bounding_capabilities()
    if settings.uid is not None:
        gid = settings.uid if settings.gid is None else settings.gid
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(settings.uid, settings.uid, settings.uid)
    prctl.drop_capabilities()
    prctl.set_no_new_privileges()


def _die_with(zygote: int) -> None:
    """Bind this life to the zygote's, and keep orphans of the instance below it while it lives."""
    prctl.become_subreaper()
    prctl.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != zygote:
        os._exit(FAILED_CODE)


def _restore_signals() -> None:
    """Give every signal the handling a fresh interpreter has, and let them through."""
    for number in signal.valid_signals():
        with contextlib.suppress(OSError, ValueError, TypeError):
            signal.signal(number, signal.SIG_DFL)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.enable(sys.stderr)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _make_own(settings: control.Settings) -> None:
    """Set environment, threads and seeds, none of which may be shared with siblings."""
    threads = str(settings.threads)
    os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads))
    os.environ.update(settings.environment)
    sys.argv[:] = ["algomesh-instance"]
    random.seed()
    if (numpy_random := sys.modules.get("numpy.random")) is not None:  # numpy imports it when it is first used
        numpy_random.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.seed()
        torch.set_num_threads(settings.threads)
    gc.enable()


def _code_of(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    sys.stderr.write(f"{error.code}\n")
    return 1
