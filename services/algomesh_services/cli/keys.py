"""`key create`, `key list` and `key revoke`."""

import time
from collections.abc import Iterable
from typing import Any, Final

import msgspec
import typer

from algomesh.requests import ask
from algomesh_broker import platform
from algomesh_broker.connection import Connection
from algomesh_broker.errors import BadName
from algomesh_broker.permissions import ADMIN, OBSERVE, Scope
from algomesh_services.cli.output import Column, ago, note, print_json, print_rows, write
from algomesh_services.cli.session import run

_LIST: Final = (
    Column("id", "id"),
    Column("name", "name"),
    Column("state", "state", is_state=True),
    Column("created_at", "created", lambda at: f"{ago(at)} ago"),
    Column("scopes", "may", " ".join),
)


def create(words: Iterable[str], may: Iterable[str], *, as_json: bool) -> None:
    """Make a key and print it, the only time it is shown."""
    name, scopes = name_and_scopes(list(words), list(may))

    async def work(connection: Connection) -> platform.KeyCreated:
        body = platform.KeyCreate(name=name, scopes=scopes)
        return await ask(connection, "registry", "key-create", "", body, platform.KeyCreated)

    created = run(work, needs_nats_for="key create")
    if as_json:
        print_json([msgspec.structs.asdict(created)])
        return
    write(created.key)
    note(f"{created.name} may {' '.join(created.scopes)}; the key is shown this once (its id is {created.id})")


def show(*, as_json: bool) -> None:
    """List the keys."""

    async def work(connection: Connection) -> platform.KeyRows:
        return await ask(connection, "registry", "key-list", "", platform.KeyList(), platform.KeyRows)

    now = time.time()
    rows: list[dict[str, Any]] = []
    for row in run(work, needs_nats_for="key list").keys:
        state = "active" if row.revoked_at is None or row.revoked_at > now else "revoked"
        rows.append({**msgspec.structs.asdict(row), "state": state})
    print_rows(rows, _LIST, as_json=as_json, empty="no keys")


def revoke(key: str, *, as_json: bool) -> None:
    """End a key."""

    async def work(connection: Connection) -> platform.Done:
        return await ask(connection, "registry", "key-revoke", "", platform.KeyRevoke(key=key), platform.Done)

    done = run(work, needs_nats_for="key revoke")
    if as_json:
        print_json([{"key": key, "revoked": done.count}])
    else:
        write(f"revoked {key}")


def name_and_scopes(words: list[str], may: list[str]) -> tuple[str, list[str]]:
    """The key's name and scopes from what stands on the command line.

    `--may A B NAME` and `NAME --may A B` reach us alike: what follows the first scope is just another word.
    Raises typer.BadParameter.
    """
    names = [word for word in words if not _looks_like_scope(word)]
    scopes = may + [word for word in words if _looks_like_scope(word)]
    if len(names) != 1:
        told = f"{', '.join(names)} are several names" if names else "give the key a name"
        raise typer.BadParameter(f"{told}; a scope is written like call:text/*", param_hint="NAME")
    if not scopes:
        raise typer.BadParameter("say what it may do, e.g. --may 'call:*' observe", param_hint="--may")
    try:
        return names[0], [str(Scope.parse(scope)) for scope in scopes]
    except BadName as error:
        raise typer.BadParameter(str(error), param_hint="--may") from error


def _looks_like_scope(word: str) -> bool:
    return ":" in word or word in (ADMIN, OBSERVE)
