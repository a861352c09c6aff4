"""What a forked child does between the zygote and the instance's entry: become a process of its own, with less power.

Called by the zygote right after the fork, with all signals blocked. The child does what needs no order, and waits
for one. From then on it has nothing of the zygote's: no descriptor but its log and its watch page, its own session,
its own seeds, and, where the launcher is root, another uid without any capability. It dies with the zygote. It
never returns: it ends with the entry's code, or 70 when the entry raised, after the traceback has gone to the log.
"""

import contextlib
import faulthandler
import gc
import mmap
import os
import random
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Final, NoReturn

from algomesh.instance import control, prctl, watch

Entry = Callable[[bytes, mmap.mmap], int]

FAILED_CODE: Final = 70  # EX_SOFTWARE of sysexits.h
_OOM_SCORE_STEP = 500


def run(entry: Entry, orders: socket.socket, *, zygote: int) -> NoReturn:
    """Wait on `orders` for one order and its two descriptors, become that instance, call `entry`, and exit."""
    code = FAILED_CODE
    try:
        _stand_by(orders.fileno(), zygote)
        order, (log_fd, watch_fd) = _await_order(orders)
        began_ns = time.monotonic_ns()
        _redirect(log_fd)
        page = watch.open_page(watch_fd)
        os.close(watch_fd)
        watch.WatchWriter(page).enter(watch.Phase.FORKED, began_ns)
        settings, boot = control.read_private(order)
        prctl.set_process_name(control.read_head(order))
        order[:] = bytes(len(order))
        order.release()
        _limit(settings)
        _give_up_power(settings)
        _die_with(zygote)
        _make_own(settings)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
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


def _stand_by(orders_fd: int, zygote: int) -> None:
    """Do what is the same for every instance, with all signals still blocked."""
    os.setsid()
    _keep_only(orders_fd)
    prctl.set_process_name("standby")
    _die_with(zygote)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.geteuid() == 0:
        prctl.drop_bounding_capabilities()
    _restore_signals()
    random.seed()
    if (numpy_random := sys.modules.get("numpy.random")) is not None:  # numpy imports it when it is first used
        numpy_random.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.seed()


def _await_order(orders: socket.socket) -> tuple[memoryview, list[int]]:
    order, fds = control.receive_order(orders, bytearray(control.MAX_ORDER_BYTES))
    orders.close()
    if len(fds) != 2:  # the zygote has ended, or has thought better of it
        os._exit(0)
    return order, fds


def _keep_only(kept_fd: int) -> None:
    """Close every descriptor but `kept_fd`; the standard three lead nowhere until there is a log."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  # whose own descriptor is closed by now
        if (fd := int(name)) > 2 and fd != kept_fd:
            with contextlib.suppress(OSError):
                os.close(fd)


def _redirect(log_fd: int) -> None:
    """Send everything printed to the log, also by C code and by programs that are started."""
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)
    # Python's streams have a descriptor of their own: code that closes 1 or 2 must not make the next socket,
    # which gets the freed number, the place where tracebacks are written.
    sys.stdout = sys.__stdout__ = _text_stream()  # type: ignore[misc]  # final in typeshed; this is a new process
    sys.stderr = sys.__stderr__ = _text_stream()  # type: ignore[misc]
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    faulthandler.enable(sys.stderr)


def _text_stream() -> TextIOWrapper:
    return open(os.dup(1), "w", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: PTH123


def _limit(settings: control.Settings) -> None:
    """Set priority, how many processes there may be, and that the kernel looks here first when memory is short."""
    if settings.nice:
        os.nice(settings.nice)
    if settings.max_processes is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        most = settings.max_processes if hard == resource.RLIM_INFINITY else min(settings.max_processes, hard)
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        score.write_text(str(min(1000, int(score.read_text()) + _OOM_SCORE_STEP)))


def _give_up_power(settings: control.Settings) -> None:
    """Take the uid asked for; no capability and no way to get one is left in any case."""
    if settings.uid is not None:
        gid = settings.uid if settings.gid is None else settings.gid
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(settings.uid, settings.uid, settings.uid)
    prctl.drop_capabilities()
    prctl.set_no_new_privileges()


def _die_with(zygote: int) -> None:
    """Bind this life to the zygote's, and keep orphans of the instance below it while it lives.

    To be done again after the uid has changed: the kernel forgets the first then.
    """
    prctl.become_subreaper()
    prctl.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != zygote:
        os._exit(FAILED_CODE)


def _restore_signals() -> None:
    """Give every signal the handling a fresh interpreter has."""
    for number in signal.valid_signals():
        with contextlib.suppress(OSError, ValueError, TypeError):
            signal.signal(number, signal.SIG_DFL)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _make_own(settings: control.Settings) -> None:
    """Set environment and threads."""
    threads = str(settings.threads)
    os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads))
    os.environ.update(settings.environment)
    sys.argv[:] = ["algomesh-instance"]
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(settings.threads)
    gc.enable()


def _code_of(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    sys.stderr.write(f"{error.code}\n")
    return 1
