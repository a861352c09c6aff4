"""What nats-server asks and is answered when somebody connects: JWTs of NATS' version 2.

Written from NATS' published description of decentralized JWT authentication and of the auth
callout: base64url header, base64url claims, ed25519 signature by an nkey. The request is not
decrypted: an `xkey` is not configured, since the server and the registry meet on loopback or
on a link that is TLS already.
"""

import base64
import hashlib
import json
from typing import Any

import msgspec
from msgspec import Struct

from algomesh_broker.authorization import ACCOUNT
from algomesh_broker.errors import BadMessage
from algomesh_broker.permissions import Permissions

_ALGORITHM = {"typ": "JWT", "alg": "ed25519-nkey"}


class _Server(Struct, frozen=True):
    id: str


class _ClientInfo(Struct, frozen=True):
    id: int = 0
    host: str = ""


class _ConnectOptions(Struct, frozen=True):
    auth_token: str = ""
    name: str = ""


class _Request(Struct, frozen=True):
    server_id: _Server
    user_nkey: str
    client_info: _ClientInfo = _ClientInfo()
    connect_opts: _ConnectOptions = _ConnectOptions()


class _RequestClaims(Struct, frozen=True):
    nats: _Request


class AuthRequest(Struct, frozen=True, kw_only=True):
    """Somebody connects: the secret they sent, and whom the answer is for."""

    server: str
    user_nkey: str
    host: str
    token: str


_decode_request = msgspec.json.Decoder(_RequestClaims).decode


def read_request(payload: bytes | memoryview) -> AuthRequest:
    """Read what nats-server published. Raises BadMessage.

    The signature is not checked: only the server can publish there, and the key that
    signed it is named nowhere but in the request itself.
    """
    try:
        _, claims, _ = bytes(payload).split(b".")
        nats = _decode_request(_unbase64(claims)).nats
    except (ValueError, msgspec.MsgspecError) as error:
        # Without the cause: its text may quote the request, and that holds a key.
        raise BadMessage(f"not an authorization request: {type(error).__name__}") from None
    return AuthRequest(
        server=nats.server_id.id,
        user_nkey=nats.user_nkey,
        host=nats.client_info.host,
        token=nats.connect_opts.auth_token,
    )


class Issuer:
    """Signs answers with the issuer's account nkey; one per registry."""

    def __init__(self, seed: bytes) -> None:
        import nkeys

        self._pair = nkeys.from_seed(bytearray(seed))
        self.public_key = bytes(self._pair.public_key).decode()

    def accept(self, request: AuthRequest, name: str, allowed: Permissions, expires: float, *, now: float) -> bytes:
        """The answer that lets a connection in as `name` until `expires` (seconds since the epoch)."""
        user = {
            "pub": {"allow": allowed.publish},
            "sub": {"allow": allowed.subscribe},
            "subs": -1,
            "data": -1,
            "payload": -1,
            "type": "user",
            "version": 2,
        }
        claims = {"sub": request.user_nkey, "aud": ACCOUNT, "name": name, "exp": int(expires), "nats": user}
        return self._answer(request, {"jwt": self._sign(claims, now)}, now)

    def refuse(self, request: AuthRequest, reason: str, *, now: float) -> bytes:
        """The answer that turns a connection away; `reason` is for the server's log."""
        return self._answer(request, {"error": reason}, now)

    def _answer(self, request: AuthRequest, body: dict[str, Any], now: float) -> bytes:
        nats = body | {"type": "authorization_response", "version": 2}
        return self._sign({"sub": request.user_nkey, "aud": request.server, "nats": nats}, now).encode()

    def _sign(self, claims: dict[str, Any], now: float) -> str:
        claims = claims | {"iss": self.public_key, "iat": int(now)}
        digest = hashlib.new("sha512_256", _compact(claims)).digest()
        claims["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
        signed = f"{_base64(_compact(_ALGORITHM))}.{_base64(_compact(claims))}"
        return f"{signed}.{_base64(self._pair.sign(signed.encode()))}"


def _compact(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unbase64(text: bytes) -> bytes:
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
