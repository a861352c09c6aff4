"""A program of the user's own, as a child process: started in a group of its own, so that it ends with all it started.

Ctrl-C in the terminal does not reach it: the adapter drains first, and ends it then. It dies with the adapter.
"""

import asyncio
import contextlib
import os
import shlex
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from functools import partial
from typing import Final

from algomesh import errors
from algomesh.instance import prctl

LONGEST_BYTES: Final = 64 * 2**20
_SHOWN: Final = 200


def split_command(command: str | Sequence[str]) -> list[str]:
    """The words of a command as a shell would read them. Raises BadInput for what is none."""
    try:
        words = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError as error:
        raise errors.BadInput(f"{command!r} is no command: {error}") from error
    if not words:
        raise errors.BadInput("the command is empty; write a program and its arguments, like 'wc -w'")
    return words


async def start(words: Sequence[str], *, error_pipe: bool = False) -> Process:
    """Start a program; what it writes to stderr goes to ours, unless it is wanted as a pipe. Raises LoadFailed."""
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *words,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE if error_pipe else None,
            limit=LONGEST_BYTES,
            start_new_session=True,
            preexec_fn=partial(_die_with, os.getpid()),
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:  # cancelled itself, it might wait for ever for pipes that it never connects
        with contextlib.suppress(OSError):
            await end(await starting)
        raise
    except OSError as error:
        why = "there is no such program" if isinstance(error, FileNotFoundError) else error.strerror
        raise errors.LoadFailed(f"{words[0]!r} cannot be started: {why}") from error


async def end(process: Process) -> None:
    """Kill it and all in its group, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    # What it wrote and nobody read would keep its end from being seen, and there is no public way to drop it.
    transport: asyncio.SubprocessTransport | None = getattr(process, "_transport", None)
    if transport is not None:
        for pipe in map(transport.get_pipe_transport, (0, 1, 2)):
            if pipe is not None:
                pipe.close()
    await process.wait()
    if transport is not None:
        transport.close()


def has_ended(process: Process) -> bool:
    """Whether it is dead, also before the loop has heard of it."""
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # it was waited for already
        return True


def said_of_end(code: int | None) -> str:
    """How a program ended, as a sentence's end."""
    if code is None:
        return "closed its output"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def shown(data: bytes) -> str:
    """The beginning of what a program wrote, for a sentence."""
    text = data[:_SHOWN].decode(errors="replace").strip()
    return repr(f"{text}…" if len(data) > _SHOWN else text)


def _die_with(parent: int) -> None:
    """In the child: end when the adapter does, even if that is killed."""
    prctl.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
