"""Route tokens: the registry's word that a sender may have a route travelled.

A token is the registry's ed25519 signature over (sender, expiry, route) with these three beside it; it travels in
every envelope of the pipeline as `grant`. Whoever receives one verifies it once and finds it in a dictionary from
then on, so a warm hop costs a look-up and no cryptography. What it proves: the registry has checked that `sender`
may call every step of `route`. Who may hand over to which step follows from the route itself (route.py).
"""

import time
from typing import Final

import msgspec
from msgspec import Struct

from algomesh_broker.errors import BadGrant
from algomesh_broker.identity import raw_public_key
from algomesh_broker.route import Place, Route

LIFETIME_S: Final = 600.0
LONGEST_S: Final = 8 * 86_400.0
_MOST_KNOWN: Final = 4096
_MOST_KNOWN_BYTES: Final = 4 * 2**20  # of tokens; what is read from them takes some twenty times as much
_PURPOSE: Final = b"algomesh-route-token:"


class _Claims(Struct, frozen=True, array_like=True):
    sender: str
    expires: float
    route: bytes


class _Token(Struct, frozen=True, array_like=True):
    claims: bytes
    signature: bytes


class Granted:
    """A token that has been verified; `allowed` are the hops under it that have been checked."""

    __slots__ = ("allowed", "expires", "route", "sender", "token")

    def __init__(self, token: bytes, sender: str, expires: float, route: Route) -> None:
        self.token = token
        self.sender = sender
        self.expires = expires
        self.route = route
        self.allowed: dict[tuple[int, str, str], Place] = {}


_encode = msgspec.msgpack.Encoder().encode
_decode_token = msgspec.msgpack.Decoder(_Token).decode
_decode_claims = msgspec.msgpack.Decoder(_Claims).decode


def sign_route(
    sender: str, route: bytes, seed: bytes, *, lifetime_s: float = LIFETIME_S, now: float | None = None
) -> tuple[bytes, float]:
    """The token for `sender` and the wire form of a route, and when it expires (seconds since the epoch).

    `seed` is the registry's nkey; whether `sender` may call every step is for the registry to check before. A
    token must outlive the runs that are begun with it, so `lifetime_s` is what the sender asks for, at most 8 days.
    """
    import nkeys

    lifetime_s = min(lifetime_s, LONGEST_S) if lifetime_s > LIFETIME_S else LIFETIME_S  # which it is for a NaN, too
    expires = (time.time() if now is None else now) + lifetime_s
    claims = _encode(_Claims(sender, expires, route))
    signature = nkeys.from_seed(bytearray(seed)).sign(_PURPOSE + claims)
    return _encode(_Token(claims, signature)), expires


def read_token(token: bytes) -> Granted:
    """What a token says, unverified: for its sender, who has it from the registry. Raises BadGrant."""
    try:
        claims = _decode_claims(_decode_token(token).claims)
        return Granted(token, claims.sender, claims.expires, Route.decode(claims.route))
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise BadGrant("this is no route token") from error


class GrantBook:
    """The tokens that one receiver has verified."""

    def __init__(self, public_key: str) -> None:
        """`public_key` is the registry's nkey (`U…`)."""
        self._key = public_key
        self._known: dict[bytes, Granted] = {}
        self._known_bytes = 0

    def check(self, token: bytes, now: float) -> Granted:
        """The token's content, if the registry signed it and it is not over at `now`. Raises BadGrant, saying why."""
        known = self._known.get(token)
        if known is None:
            known = self._verify(token)
            self._keep(token, known)
        if now >= known.expires:
            raise BadGrant("the route token has expired")
        return known

    def check_hop(self, token: bytes, at: int, forwarder: str, reply_to: str, now: float) -> tuple[Granted, Place]:
        """Check a token together with what an envelope says of itself; raises BadGrant with the reason.

        `forwarder` is the subject's caller, which the broker vouches for.
        """
        granted = self._known.get(token)
        if granted is None or now >= granted.expires:
            granted = self.check(token, now)
        told = (at, forwarder, reply_to)
        place = granted.allowed.get(told)
        if place is None:
            place = granted.allowed[told] = _check_place(granted, at, forwarder, reply_to)
        return granted, place

    def _keep(self, token: bytes, known: Granted) -> None:
        self._known[token] = known
        self._known_bytes += len(token)
        while len(self._known) > _MOST_KNOWN or (self._known_bytes > _MOST_KNOWN_BYTES and len(self._known) > 1):
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._known_bytes -= len(oldest)

    def _verify(self, token: bytes) -> Granted:
        from nacl.exceptions import BadSignatureError
        from nacl.signing import VerifyKey

        try:
            parts = _decode_token(token)
            VerifyKey(raw_public_key(self._key)).verify(_PURPOSE + parts.claims, parts.signature)
        except BadSignatureError as error:
            raise BadGrant("the registry of this mesh did not sign this route token") from error
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            raise BadGrant("this is no route token") from error
        return read_token(token)


def _check_place(granted: Granted, at: int, forwarder: str, reply_to: str) -> Place:
    """What the route says of step `at`, if `forwarder` hands over to it and `reply_to` waits. Raises BadGrant."""
    route, sender = granted.route, granted.sender
    place = route.places.get(at)
    if place is None:
        raise BadGrant(f"step {at} of this route is no call")
    if not route.may_act(place.forwarder, forwarder, sender):
        raise BadGrant(f"{forwarder} does not hand over to step {at} of this route")
    if not route.may_act(place.joiner, reply_to, sender):
        raise BadGrant(f"{reply_to} does not wait for step {at} of this route")
    return place
