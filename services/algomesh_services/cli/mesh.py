"""`up` and `nats-config`."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

import typer

from algomesh_broker.authorization import authorization_config
from algomesh_broker.credentials import ensure_secrets
from algomesh_observability.logs import configure
from algomesh_services.cli.address import find_state
from algomesh_services.cli.hidden_argv import read_secrets
from algomesh_services.cli.output import is_terminal, note, write
from algomesh_services.cli.session import errors_as_lines
from algomesh_services.local.mesh import Mesh, MeshOptions

_STOPPED_BY: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SERVER_NOTES: Final = """\
# For the nats-server that carries the mesh in {state}. Public keys only.
# It also needs, once: jetstream enabled (with a store_dir), and max_payload: 8MB.
"""


def up(
    *,
    state: Path | None,
    port: int,
    key: str | None,
    nats: str | None,
    postgres: str | None,
    as_json: bool,
    secrets_fd: int | None,
) -> None:
    """Run a mesh until a signal stops it."""
    secrets = read_secrets(secrets_fd)
    options = MeshOptions(
        state=state,
        port=port,
        key=secrets.get("--key", key),
        nats=nats,
        postgres=secrets.get("--postgres", postgres),
    )
    configure("up", level="error")  # a failed start is said once, in words
    with errors_as_lines():
        was_interrupted = asyncio.run(_run(Mesh(options), as_json=as_json))
    raise typer.Exit(130 if was_interrupted else 0)


def print_nats_config(state: Path | None) -> None:
    """Print the configuration for a nats-server of the user's own."""
    with errors_as_lines():
        folder = Path(os.path.abspath(state or find_state()))  # noqa: PTH100
        ensure_secrets(folder / "secrets")
        text = authorization_config(folder / "secrets")
    write(_SERVER_NOTES.format(state=folder) + text.rstrip("\n"))


async def _run(mesh: Mesh, *, as_json: bool) -> bool:
    """Run it; whether Ctrl-C cut the start short."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    own = asyncio.current_task()
    assert own is not None

    def stop() -> None:
        if stopping.is_set() or not is_up:
            own.cancel()  # a second signal: at once; or one during the start
        stopping.set()

    is_up = False
    for signum in _STOPPED_BY:
        loop.add_signal_handler(signum, stop)
    began = time.monotonic()
    try:
        if is_terminal(sys.stderr) and not as_json:
            note("starting; the first time takes some seconds")
        async with mesh:
            is_up = True
            configure("up", level="warning")
            _say_ready(mesh, as_json=as_json, took_s=time.monotonic() - began)
            await stopping.wait()
            if not as_json:
                note("stopping")
    except asyncio.CancelledError:
        own.uncancel()
        return not is_up
    finally:
        for signum in _STOPPED_BY:
            loop.remove_signal_handler(signum)
    return False


def _say_ready(mesh: Mesh, *, as_json: bool, took_s: float) -> None:
    state = str(mesh.state.path)
    # Who started us may have closed its end of the pipe; the mesh runs on.
    with contextlib.suppress(BrokenPipeError):
        if as_json:
            pids = {"up": os.getpid(), **mesh.pids}
            fields = {"gateway": mesh.gateway, "nats": mesh.nats, "key": mesh.key, "state": state, "pids": pids}
            write(json.dumps({**fields, "metrics": mesh.metrics}))
        else:
            write("\n".join(_words(mesh, state, took_s)))


def _words(mesh: Mesh, state: str, took_s: float) -> list[str]:
    is_pretty = is_terminal(sys.stdout)

    def bold(text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if is_pretty else text

    file = mesh.state.secrets / "admin.key"
    shown = f"{mesh.key}  (made just now, kept in {file})" if mesh.is_new_key else f"in {file}"
    key = mesh.key if mesh.is_new_key else f"$(cat {_quoted(str(file))})"
    return [
        f"{bold('algomesh is up')}, after {took_s:.1f} s",
        "",
        f"  gateway  {mesh.gateway}",
        f"  nats     {mesh.nats}",
        f"  state    {state}",
        f"  key      {shown}",
        "",
        "For another terminal, or another program on this machine:",
        "",
        f"  export ALGOMESH_URL={mesh.nats}",
        f"  export ALGOMESH_API_KEY={key}",
        "",
        "  algomesh publish my_project/          make its algorithms callable",
        "  algomesh call owner/name 'some text'  call one",
        "  algomesh ps                           see what runs",
        "",
        "Ctrl-C stops everything.",
    ]


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)
