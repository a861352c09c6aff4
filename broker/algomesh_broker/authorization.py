"""The part of nats-server's configuration that says who is who, and what crosses between the accounts.

Used by the embedded server, and printed for people who run their own: programs are known by
nkey, everybody else is asked of the registry (auth callout). No password and no seed is in it.

    MESH    callers, instances, programs: every message of the mesh
    STORE   JetStream; only programs that keep a stream connect here
    SYS     the server's own account, where the registry closes a revoked key's connections
"""

import json
from pathlib import Path
from typing import Any

from algomesh_broker import permissions
from algomesh_broker.credentials import (
    ISSUER,
    PROGRAMS,
    STORE_PROGRAMS,
    SYSTEM,
    public_key,
    read_seed,
    store_seed_name,
)
from algomesh_broker.subjects import (
    ALL_CLAIMS,
    ALL_EVENTS,
    ALL_PARKED,
    ALL_RESULTS,
    PARKED_STREAM,
    READ_CLAIM,
    READ_RESULT,
)

ACCOUNT, STORE_ACCOUNT, SYSTEM_ACCOUNT = "MESH", "STORE", "SYS"
# After a restart callers are often back before the registry, and then wait this long for nothing.
CALLOUT_TIMEOUT_S = 1
LONGEST_PULL_S = 30
_MARKS = 2**31 - 1
# What MESH may ask of STORE: answered once (a parked call's PubAck, an ack's ack, a piece of a claim, a kept result)
# or many times.
_ANSWERED_ONCE = (ALL_PARKED, f"$JS.ACK.{PARKED_STREAM}.*.>", ALL_CLAIMS, READ_CLAIM, ALL_RESULTS, READ_RESULT)
_ANSWERED_OFTEN = (f"$JS.API.CONSUMER.MSG.NEXT.{PARKED_STREAM}.*", permissions.DIRECTORY_GET)


def authorization_config(directory: Path) -> str:
    """The blocks `accounts`, `system_account` and `authorization`, from the secret files in `directory`.

    The text holds public keys only. Raises OSError when a secret file is missing.
    """
    mesh = {public_key(read_seed(directory, name)): permissions.of_program(name) for name in PROGRAMS}
    store = {
        public_key(read_seed(directory, store_seed_name(name))): permissions.in_store(name) for name in STORE_PROGRAMS
    }
    system = public_key(read_seed(directory, SYSTEM))
    accounts = {
        ACCOUNT: {
            "users": _users(mesh),
            "exports": [{"stream": ALL_EVENTS, "accounts": [STORE_ACCOUNT]}],
            "mappings": dict(map(_marked, (ALL_CLAIMS, READ_CLAIM, ALL_RESULTS, READ_RESULT))),
            "imports": [
                *(_import("service", STORE_ACCOUNT, subject) for subject in _ANSWERED_ONCE + _ANSWERED_OFTEN),
                _import("stream", STORE_ACCOUNT, permissions.DIRECTORY_UPDATES),
            ],
        },
        STORE_ACCOUNT: {
            "jetstream": "enabled",
            "users": _users(store),
            "exports": [
                *({"service": subject, "accounts": [ACCOUNT]} for subject in _ANSWERED_ONCE),
                *(_answered_often(subject) for subject in _ANSWERED_OFTEN),
                {"stream": permissions.DIRECTORY_UPDATES, "accounts": [ACCOUNT]},
            ],
            "imports": [_import("stream", ACCOUNT, ALL_EVENTS)],
        },
        SYSTEM_ACCOUNT: {"users": [{"nkey": system}]},
    }
    callout = {
        "issuer": public_key(read_seed(directory, ISSUER)),
        "account": ACCOUNT,
        "auth_users": [*mesh, *store, system],
    }
    authorization = {"timeout": CALLOUT_TIMEOUT_S, "auth_callout": callout}
    # JSON is nats-server's configuration too, and quotes whatever a subject may contain.
    return (
        f"accounts: {json.dumps(accounts, indent=2)}\n"
        f"system_account: {SYSTEM_ACCOUNT}\n"
        f"authorization: {json.dumps(authorization, indent=2)}\n"
    )


def _users(users: dict[str, permissions.Permissions]) -> list[dict[str, Any]]:
    return [
        {
            "nkey": nkey,
            "permissions": {"publish": {"allow": allowed.publish}, "subscribe": {"allow": allowed.subscribe}},
        }
        for nkey, allowed in users.items()
    ]


def _marked(subject: str) -> tuple[str, str]:
    """The mapping that sets the mark of a claim's or a kept result's subject, whatever the sender had put there.

    The mark is a hash of a claim's id, and of all that names a result. A `*` in their place would be read as a wildcard
    by JetStream: it gets the mark of the text `*`, under which nothing is stored (ADR 0008).
    """
    kind = "claim" if subject in (ALL_CLAIMS, READ_CLAIM) else "cache"
    head, _, tail = subject.rpartition(f"{kind}.*")
    others = range(2, 2 + tail.count("*"))
    hashed = (3,) if kind == "claim" else others
    mark = f"{{{{partition({_MARKS},{','.join(map(str, hashed))})}}}}"
    places = ".".join(f"{{{{wildcard({number})}}}}" for number in others)
    return subject, f"{head}{kind}.{mark}.{places}.{tail.rpartition('.')[2]}"


def _import(kind: str, account: str, subject: str) -> dict[str, Any]:
    return {kind: {"account": account, "subject": subject}}


def _answered_often(subject: str) -> dict[str, Any]:
    # The server forgets the way back when nothing came for this long, so a pull must be shorter.
    return {
        "service": subject,
        "accounts": [ACCOUNT],
        "response_type": "stream",
        "response_threshold": f"{LONGEST_PULL_S + 10}s",
    }
