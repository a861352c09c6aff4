"""The secret files of a mesh: who makes them, where they lie, how they are read.

    issuer.nk           signs what the registry answers to nats-server      registry
    <program>.nk        one nkey per program                                that program
    <program>.store.nk  the same program, in the account of the streams     that program (the gateway has none)
    launcher.pub        who may sign instance tokens, one key a line        registry
    registry.pub        who signs route tokens                              launcher
    system.nk           closes the connections of a revoked key             registry
    pepper              keys are hashed under it                            registry
    admin.key           the administrator's key of this state directory     registry, `up`

The directory is 0700 and its files 0600. A file that exists is never changed, except `admin.key`.
A program on another machine needs only the files of its line.
"""

import os
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path

from algomesh_broker.identity import Identity, key_id, new_key

PROGRAMS = ("registry", "launcher", "gateway", "ledger", "prewarmer")
STORE_PROGRAMS = ("registry", "launcher", "ledger")
ISSUER, SYSTEM = "issuer", "system"
_PEPPER, _ADMIN_KEY, _LAUNCHERS, _ROUTE_KEY = "pepper", "admin.key", "launcher.pub", "registry.pub"


def ensure_secrets(directory: Path) -> None:
    """Make every secret file that is not there yet. Raises OSError when the directory cannot be written."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    _ensure(directory / f"{ISSUER}.nk", lambda: _new_seed("account"))
    for name in (*PROGRAMS, *map(store_seed_name, STORE_PROGRAMS), SYSTEM):
        _ensure(directory / f"{name}.nk", lambda: _new_seed("user"))
    _ensure(directory / _PEPPER, lambda: secrets.token_bytes(32))
    for file, signer in ((_LAUNCHERS, "launcher"), (_ROUTE_KEY, "registry")):
        _ensure(directory / file, partial(_public_line, directory, signer))


def ensure_admin_key(directory: Path, key: str | None = None) -> str:
    """The administrator's key of this mesh: `key` if given, else the one that is there, else a new one.

    It is written to `admin.key`, where the registry finds it. Raises Unauthenticated for what cannot be a key.
    """
    path = directory / _ADMIN_KEY
    if key is None and (known := read_admin_key(directory)) is not None:
        return known
    key = new_key() if key is None else key
    key_id(key)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if read_admin_key(directory) != key:
        _replace(path, key.encode() + b"\n")
    return key


def read_admin_key(directory: Path) -> str | None:
    """The administrator's key, or None where there is none."""
    try:
        return (directory / _ADMIN_KEY).read_text().rstrip("\n") or None
    except FileNotFoundError:
        return None


def read_seed(directory: Path, name: str) -> bytes:
    """The nkey seed in `<name>.nk`. Raises OSError."""
    return (directory / f"{name}.nk").read_bytes().strip()


def has_seed(directory: Path, name: str) -> bool:
    """Whether `<name>.nk` is there."""
    return (directory / f"{name}.nk").exists()


def read_pepper(directory: Path) -> bytes:
    """The bytes under which keys are hashed. Raises OSError."""
    return (directory / _PEPPER).read_bytes()


def read_launchers(directory: Path) -> tuple[str, ...]:
    """The public nkeys whose instance tokens are good. Raises OSError."""
    return tuple((directory / _LAUNCHERS).read_text().split())


def read_route_key(directory: Path) -> str:
    """The public nkey of the registry, which signs route tokens. Raises OSError."""
    return (directory / _ROUTE_KEY).read_text().strip()


def program_identity(directory: Path, program: str) -> Identity:
    """The identity of `program`, from its seed file. Raises OSError."""
    return Identity.of_program(program, read_seed(directory, program))


def store_seed_name(program: str) -> str:
    """The name of the seed with which `program` connects to the account of the streams."""
    return f"{program}.store"


def store_identity(directory: Path, program: str) -> Identity:
    """The identity of `program` in the account that holds the streams, for JetStreamAdmin. Raises OSError."""
    return Identity.of_program(program, read_seed(directory, store_seed_name(program)))


def public_key(seed: bytes) -> str:
    """The public half of an nkey seed: `U…` of a user, `A…` of an account."""
    import nkeys  # callers and instances read this module's neighbours, and have no such package

    return bytes(nkeys.from_seed(bytearray(seed)).public_key).decode()


def _public_line(directory: Path, program: str) -> bytes:
    return public_key(read_seed(directory, program)).encode() + b"\n"


def _new_seed(kind: str) -> bytes:
    import nkeys

    prefix = nkeys.PREFIX_BYTE_ACCOUNT if kind == "account" else nkeys.PREFIX_BYTE_USER
    return bytes(nkeys.encode_seed(secrets.token_bytes(32), prefix))


def _ensure(path: Path, make: Callable[[], bytes]) -> None:
    if not path.exists():
        _replace(path, make())


def _replace(path: Path, content: bytes) -> None:
    """Write all of it or nothing: a seed cut short by a full disk would lock everybody out."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
