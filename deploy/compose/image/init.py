"""Makes what a mesh in containers needs before anything starts: secrets, the NATS configuration, volumes one may write.

The one-shot service `init` runs it at every `up`. What exists stays as it is, but for the configuration, which is
written anew, since another version of the mesh may allow its programs other things; a server that runs already is told
to read it again. Each program gets a volume with its own secrets and nobody else's:

    /vault            all of them; only this service sees it
    /secrets/<name>   what <name> needs, owned by the user that <name> runs as, mode 0400
    /nats             nats-server's configuration (public keys only) and the probe of its health
"""

import asyncio
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from algomesh_broker.authorization import authorization_config
from algomesh_broker.connection import Connection
from algomesh_broker.credentials import SYSTEM, ensure_admin_key, ensure_secrets, read_seed
from algomesh_broker.errors import BrokerError
from algomesh_broker.identity import Identity
from algomesh_broker.server import NatsConfig, render

VAULT, SECRETS, NATS = Path("/vault"), Path("/secrets"), Path("/nats")
MESH_UID, ROOT = 10001, 0
_POSTGRES_PASSWORD, _PASSFILE, _ADMIN = "postgres.password", "pgpass", "admin.key"
# Who gets what; credentials.py says what each file is.
OF = {
    "registry": (
        *("issuer.nk", "registry.nk", "registry.store.nk", "system.nk", "launcher.pub", "registry.pub", "pepper"),
        *(_ADMIN, _PASSFILE),
    ),
    "launcher": ("launcher.nk", "launcher.store.nk", "launcher.pub", "registry.pub"),
    "gateway": ("gateway.nk",),
    "ledger": ("ledger.nk", "ledger.store.nk", _PASSFILE),
    "prewarmer": ("prewarmer.nk", _PASSFILE),
    "admin": (_ADMIN,),
    "postgres": (_POSTGRES_PASSWORD,),
}
_MEMORY_BYTES = int(os.environ.get("NATS_STREAM_MEMORY_BYTES") or 1_200_000_000)
_SERVER, _SERVER_WITHIN_S = "nats://nats:4222", 2.0


def main() -> None:
    """Make all of it, and say what was new."""
    os.umask(0o077)
    is_first = not (VAULT / f"{SYSTEM}.nk").exists()
    ensure_secrets(VAULT)
    ensure_admin_key(VAULT)
    password = _kept(VAULT / _POSTGRES_PASSWORD, lambda: secrets.token_urlsafe(32))
    _kept(VAULT / _PASSFILE, lambda: f"*:*:*:*:{password}")
    for name, files in OF.items():
        _give(name, files)
    _prepare_volumes()
    is_changed = _write_configuration()
    if is_changed and not is_first:
        asyncio.run(_reload())
    _say("secrets made" if is_first else "secrets kept", "configuration written" if is_changed else "nothing changed")


def _kept(path: Path, make: Callable[[], str]) -> str:
    if not path.exists():
        _write(path, f"{make()}\n", ROOT, 0o400)
    return path.read_text().strip()


def _give(name: str, files: tuple[str, ...]) -> None:
    """Fill the volume of `name`; what it may no longer have goes."""
    folder = SECRETS / name
    # The user of PostgreSQL's image has a number we do not know; nobody else has that volume.
    owner, mode = (MESH_UID, 0o400) if name not in ("launcher", "postgres") else (ROOT, 0o400)
    if name == "postgres":
        mode = 0o444
    for stale in set(folder.iterdir()) - {folder / file for file in files}:
        stale.unlink()
    for file in files:
        # A passfile that others may read is ignored by PostgreSQL's clients, and 0400 is theirs too.
        _write(folder / file, (VAULT / file).read_bytes(), owner, mode)
    os.chown(folder, owner, owner)
    folder.chmod(0o755 if name == "postgres" else 0o700)


def _prepare_volumes() -> None:
    """Owners and modes of the volumes that images of others, and the launcher's instances, use."""
    os.chown("/volumes/nats", MESH_UID, MESH_UID)
    Path("/volumes/nats").chmod(0o700)
    Path("/volumes/postgres").chmod(0o1777)  # as the image has it: its user makes a folder of its own in it
    # Instances have another uid: they go through to the unpacked versions and can list nothing on the way.
    Path("/volumes/launcher").chmod(0o711)


def _write_configuration() -> bool:
    """Write nats-server's configuration; whether it is another than before."""
    config = NatsConfig(
        store_dir=Path("/data"),
        runtime_dir=Path("/tmp"),  # noqa: S108  # the container's own
        host="0.0.0.0",  # noqa: S104  # inside the containers' network; what is published is compose's to say
        port=4222,
        max_memory_bytes=_MEMORY_BYTES,
    )
    text = render(config) + 'http: "127.0.0.1:8222"\n' + authorization_config(VAULT)
    path = NATS / "nats.conf"
    is_changed = not path.exists() or path.read_text() != text
    if is_changed:
        _write(path, text, MESH_UID, 0o400)
    for file in Path("/opt/probe").iterdir():
        _write(NATS / file.name, file.read_bytes(), ROOT, 0o555)
    NATS.chmod(0o755)
    return is_changed


async def _reload() -> None:
    """Have a server that runs read its configuration again; one that does not will do so when it starts."""
    identity = Identity.of_program(SYSTEM, read_seed(VAULT, SYSTEM))
    try:
        async with await Connection.open(_SERVER, identity, name="init", timeout_s=_SERVER_WITHIN_S) as system:
            answer = await system.request("$SYS.REQ.SERVER.PING", b"", _SERVER_WITHIN_S)
            server = msgspec.json.decode(answer.data)["server"]["id"]
            await system.request(f"$SYS.REQ.SERVER.{server}.RELOAD", b"{}", _SERVER_WITHIN_S)
    except (BrokerError, OSError) as error:
        _say(f"no server was told of the new configuration ({error})")


def _write(path: Path, content: str | bytes, owner: int, mode: int) -> None:
    """Replace the file in one step, so that nobody ever reads half a secret."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    draft.write_bytes(content.encode() if isinstance(content, str) else content)
    os.chown(draft, owner, owner)
    draft.chmod(mode)
    draft.replace(path)


def _say(*facts: str) -> None:
    sys.stdout.write(f"init: {', '.join(facts)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
