"""The Linux process controls Python has no name for: who dies with whom, who adopts orphans, what is given up.

Thin calls of prctl(2) and capset(2) by ctypes, for the zygote, its children, the launcher and the supervisor.
Nothing but the standard library is imported, so that a zygote can use it before it has imported anything.
Every function raises OSError with the kernel's errno when the kernel refuses.
"""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY_EVER = 63

_libc = ctypes.CDLL(None, use_errno=True)


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilitySet(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def set_parent_death_signal(number: int = signal.SIGKILL) -> None:
    """Ask for signal `number` when the thread that started this process ends; 0 takes the wish back.

    The kernel forgets the wish when the process changes its uid, so ask after that, and look at
    `os.getppid()` afterwards: a parent that died before the call is not noticed by it.
    """
    _prctl(_PR_SET_PDEATHSIG, int(number))


def become_subreaper() -> None:
    """Adopt what descendants leave behind, however often it forked or called setsid."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_no_new_privileges() -> None:
    """Give up, for good and for all descendants, what a set-uid program would add."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def set_process_name(name: str) -> None:
    """Name this process in `ps` and `top`; the kernel keeps the first 15 bytes."""
    _prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]))


def drop_bounding_capabilities() -> None:
    """Empty the set of capabilities that an executed program could get back; nothing happens without CAP_SETPCAP."""
    for capability in range(_LAST_CAPABILITY_EVER + 1):
        if _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) != 1:
            continue
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            return


def drop_capabilities() -> None:
    """Give up every capability this process holds; call it after the uid has changed."""
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    empty = (_CapabilitySet * 2)()
    if _libc.capset(ctypes.byref(header), ctypes.byref(empty)) != 0:
        _raise("capset")


def _prctl(option: int, argument: object) -> None:
    if isinstance(argument, int):
        argument = ctypes.c_ulong(argument)
    zero = ctypes.c_ulong(0)
    if _libc.prctl(option, argument, zero, zero, zero) != 0:
        _raise("prctl")


def _raise(call: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{call}: {os.strerror(number)}")
