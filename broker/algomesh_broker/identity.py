"""Who a connection is: keys of people, tokens of instances, seeds of programs, and the caller each of them is.

A key's caller can be computed by whoever holds the key, so a client knows its own subjects before
anybody has answered it. Whether the key is any good is the registry's to say (ADR 0004).
"""

import base64
import hashlib
import re
import secrets
import string
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Self

import msgspec

from algomesh_broker.errors import BadName, Unauthenticated
from algomesh_broker.names import VersionId
from algomesh_broker.subjects import inbox

_KEY = re.compile(r"am_([a-z0-9]{10})_[a-z0-9]{32}", re.ASCII)
_INSTANCE = re.compile(r"[a-z0-9]{1,32}(-[a-z0-9]{1,32}){1,3}", re.ASCII)
_ALPHABET = string.ascii_lowercase + string.digits
_TOKEN_PREFIX = "ai_"  # noqa: S105  # the form of a token, not a token
_LONGEST_TOKEN = 2048
_LONGEST_KEY = 512
PLATFORM = "platform"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a connection says about itself: its caller, its private inbox, and the secret that proves it.

    `token` is sent to the server as it is; `seed` never leaves the process, it signs the server's nonce.
    """

    caller: str
    inbox: str
    token: str | None = field(default=None, repr=False)
    seed: bytes | None = field(default=None, repr=False)

    @classmethod
    def of_key(cls, key: str) -> Self:
        """The identity of whoever holds `key`. Raises Unauthenticated for what cannot be a key."""
        caller = caller_of_key(key)
        return cls(caller, inbox(caller), token=key)

    @classmethod
    def of_instance(cls, token: str, version: VersionId, instance: str) -> Self:
        """The identity of one instance, with the token its launcher gave it. Raises BadName."""
        return cls(version.caller, inbox(check_instance(instance)), token=token)

    @classmethod
    def of_program(cls, program: str, seed: bytes) -> Self:
        """The identity of a program of the mesh, proved by its nkey `seed`."""
        return cls(caller_of_program(program), inbox(program), seed=seed)

    def with_own_inbox(self) -> Self:
        """The same identity with an inbox below its own that no other connection of it hears."""
        return replace(self, inbox=f"{self.inbox}.{secrets.token_hex(8)}")


def new_key() -> str:
    """A fresh key, `am_<id>_<secret>`; 165 bits of it are secret."""
    return f"am_{_random(10)}_{_random(32)}"


def key_id(key: str) -> str:
    """The public id of `key`, which stands in subjects and in the registry's table.

    Raises Unauthenticated for what cannot be sent as a key; the error never contains it.
    """
    made = _KEY.fullmatch(key)
    if made:
        return made[1]
    if not 1 <= len(key) <= _LONGEST_KEY or not key.isprintable() or key.startswith(_TOKEN_PREFIX):
        raise Unauthenticated(f"a key is 1 to {_LONGEST_KEY} printable characters; this is not one")
    return hashlib.sha256(b"algomesh-key-id:" + key.encode()).hexdigest()[:16]


def caller_of_key(key: str) -> str:
    """`k~<id>` of `key`. Raises Unauthenticated."""
    return caller_of_id(key_id(key))


def caller_of_id(id_: str) -> str:
    """The caller that a key of this id is."""
    return f"k~{id_}"


def caller_of_program(program: str) -> str:
    """`platform~<program>`."""
    return f"{PLATFORM}~{program}"


def check_instance(text: str) -> str:
    """Return `text` if it is an instance's id, such as `h7x2k9-42`. Raises BadName.

    The dash it must have keeps it apart from the names of programs, which have none.
    """
    if not _INSTANCE.fullmatch(text):
        raise BadName(f"{text!r} is not an instance; it is the launcher's id, a dash and more, like 'h7x2k9-42'")
    return text


class InstanceClaims(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What a launcher says of an instance it starts; `expires` is seconds since the epoch.

    `by` is the key (`k~…`) that attached the instance, where no launcher started it; the registry says that then.
    """

    owner: str
    name: str
    version: str
    instance: str
    expires: float
    by: str = ""

    @property
    def version_id(self) -> VersionId:
        """The version the instance runs. Raises BadName."""
        return VersionId.parse(f"{self.owner}/{self.name}/{self.version}")


_encode_claims = msgspec.msgpack.Encoder().encode
_decode_claims = msgspec.msgpack.Decoder(InstanceClaims).decode


def sign_instance_token(
    version: VersionId,
    instance: str,
    seed: bytes,
    *,
    by: str = "",
    lifetime_s: float = 30 * 86400.0,
    now: float | None = None,
) -> str:
    """The token with which `instance` of `version` connects; `seed` is the launcher's nkey.

    It must outlive the instance, which presents it again at every reconnect. Raises BadName.
    """
    import nkeys

    claims = InstanceClaims(
        owner=version.owner,
        name=version.name,
        version=str(version.version),
        instance=check_instance(instance),
        expires=(time.time() if now is None else now) + lifetime_s,
        by=by,
    )
    body = _encode_claims(claims)
    signature = nkeys.from_seed(bytearray(seed)).sign(_signed(body))
    return f"{_TOKEN_PREFIX}{_base64(body)}.{_base64(signature)}"


def is_instance_token(token: str) -> bool:
    """Whether this claims to be an instance's token rather than a key."""
    return token.startswith(_TOKEN_PREFIX)


def verify_instance_token(token: str, public_keys: Iterable[str], now: float) -> InstanceClaims:
    """The claims of `token`, if one of the launchers' `public_keys` (`U…`) signed it and it is not over.

    Raises Unauthenticated, saying why but never repeating the token.
    """
    from nacl.exceptions import BadSignatureError
    from nacl.signing import VerifyKey

    try:
        body, signature = map(_unbase64, token[:_LONGEST_TOKEN].removeprefix(_TOKEN_PREFIX).split("."))
    except ValueError as error:
        raise Unauthenticated("this instance token is not of its form") from error
    for public_key in public_keys:
        try:
            VerifyKey(raw_public_key(public_key)).verify(_signed(body), signature)
        except (BadSignatureError, ValueError):
            continue
        break
    else:
        raise Unauthenticated("no launcher of this mesh signed this instance token")
    try:
        claims = _decode_claims(body)
        check_instance(claims.instance)
        _ = claims.version_id
    except (msgspec.MsgspecError, BadName) as error:
        raise Unauthenticated("this instance token says what no launcher says") from error
    if claims.expires <= now:
        raise Unauthenticated(f"the token of instance {claims.instance} is over; its launcher gives a new one")
    return claims


def raw_public_key(public_key: str) -> bytes:
    """The 32 bytes inside an nkey's public half (`U…`, `A…`). Raises ValueError."""
    raw = base64.b32decode(public_key + "=" * (-len(public_key) % 8))
    if len(raw) != 35:
        raise ValueError("a public nkey has 56 characters")
    return raw[1:33]


def _signed(body: bytes) -> bytes:
    # The nkey also signs the server's nonces; the prefix keeps a nonce from ever being a token.
    return b"algomesh-instance-token:" + body


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unbase64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
