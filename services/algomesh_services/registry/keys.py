"""Keys in memory: whose key is this, and what may it do. The callout answers from here.

The ring is complete: it is filled from PostgreSQL and told of every change, so that keys keep
working while the database is away.
"""

import hashlib
import hmac
from collections.abc import Iterable

from algomesh_broker.errors import BadName, Unauthenticated
from algomesh_broker.identity import key_id
from algomesh_broker.permissions import Scope
from algomesh_broker.request_server import Refusal
from algomesh_services.registry.store import KeyRecord

_MOST_SCOPES, _LONGEST_NAME = 64, 64


class KeyRing:
    """Every key of the mesh, hashed under the pepper."""

    def __init__(self, pepper: bytes) -> None:
        self._pepper = pepper
        self._keys: dict[str, KeyRecord] = {}

    def replace(self, records: Iterable[KeyRecord]) -> None:
        """Forget what is known, and know these."""
        self._keys = {record.id: record for record in records}

    def put(self, record: KeyRecord) -> None:
        """Know one key, or what it has become."""
        self._keys[record.id] = record

    def hash(self, key: str) -> bytes:
        """What is kept of a key: HMAC-SHA-256 under the pepper."""
        return hmac.digest(self._pepper, key.encode(), hashlib.sha256)

    def knows(self, id_: str) -> bool:
        """Whether a key of this id was ever made."""
        return id_ in self._keys

    def check(self, key: str) -> KeyRecord:
        """The record of an active key. Raises Unauthenticated, without the key in its sentence."""
        record = self._keys.get(key_id(key))
        if record is None or not hmac.compare_digest(record.hash, self.hash(key)):
            raise Unauthenticated("the mesh does not know this key")
        if record.revoked_at is not None:
            raise Unauthenticated(f"the key {record.id} was revoked")
        return record

    def scopes_of(self, caller: str) -> tuple[str, ...]:
        """The scopes of the caller `k~<id>`; none for callers that are no keys."""
        record = self._keys.get(caller.removeprefix("k~"))
        return record.scopes if record is not None and record.revoked_at is None else ()


def check_scopes(scopes: Iterable[str]) -> list[str]:
    """The scopes as they are kept, each once. Raises Refusal with the form in its sentence."""
    try:
        parsed = list(dict.fromkeys(str(Scope.parse(scope)) for scope in scopes))
    except BadName as error:
        raise Refusal("bad_scope", str(error)) from error
    if not 1 <= len(parsed) <= _MOST_SCOPES:
        raise Refusal("bad_scope", f"a key has 1 to {_MOST_SCOPES} scopes, such as call:text/* or observe")
    return parsed


def check_key_name(name: str) -> str:
    """The name people give a key. Raises Refusal."""
    if not (1 <= len(name) <= _LONGEST_NAME and name.isprintable() and name == name.strip()):
        raise Refusal("bad_scope", f"a key's name has 1 to {_LONGEST_NAME} printable characters")
    return name
