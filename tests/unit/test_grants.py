"""Route tokens: only what the registry signed, only for who it signed it, only along the route, only in time."""

import base64

import msgspec
import nkeys
import pytest

from algomesh_broker import grants
from algomesh_broker.credentials import public_key
from algomesh_broker.errors import BadGrant
from algomesh_broker.grants import LIFETIME_S, LONGEST_S, GrantBook, read_token, sign_route
from algomesh_broker.route import END, MOST_STEPS, AllStep, CallStep, Route, Step

NOW = 1_000_000.0
REGISTRY = bytes(nkeys.encode_seed(b"r" * 32, nkeys.PREFIX_BYTE_USER))
FORGER = bytes(nkeys.encode_seed(b"f" * 32, nkeys.PREFIX_BYTE_USER))
ME, OTHER = "k~me", "k~other"
CLEAN, TOPICS, SENTIMENT, MERGE = (f"text/{name}/1.0.0" for name in ("clean", "topics", "sentiment", "merge"))
# clean | (sentiment & topics) | merge
ROUTE = Route([CallStep(CLEAN, 1), AllStep([2, 3], 4), CallStep(SENTIMENT), CallStep(TOPICS), CallStep(MERGE)])


def token_of(route: Route = ROUTE, sender: str = ME, seed: bytes = REGISTRY, **fields: float) -> bytes:
    return sign_route(sender, route.data, seed, now=NOW, **fields)[0]


@pytest.fixture
def book() -> GrantBook:
    return GrantBook(public_key(REGISTRY))


def test_what_the_registry_signed_is_good_until_it_expires(book: GrantBook) -> None:
    token, expires = sign_route(ME, ROUTE.data, REGISTRY, now=NOW)

    granted = book.check(token, expires - 0.001)

    assert (granted.sender, granted.route.data, granted.expires) == (ME, ROUTE.data, NOW + LIFETIME_S)
    with pytest.raises(BadGrant, match="expired"):
        book.check(token, expires)


def test_a_token_that_is_known_expires_all_the_same(book: GrantBook) -> None:
    token = token_of()
    book.check(token, NOW)

    with pytest.raises(BadGrant, match="expired"):
        book.check(token, NOW + LIFETIME_S)


@pytest.mark.parametrize(
    ("asked_s", "given_s"),
    [(0.0, LIFETIME_S), (-1.0, LIFETIME_S), (float("nan"), LIFETIME_S), (3_600.0, 3_600.0), (float("inf"), LONGEST_S),
     (1e12, LONGEST_S)],
)  # fmt: skip
def test_a_lifetime_is_within_bounds_whatever_is_asked(asked_s: float, given_s: float) -> None:
    _, expires = sign_route(ME, ROUTE.data, REGISTRY, lifetime_s=asked_s, now=NOW)

    assert expires - NOW == given_s


def test_what_another_signed_is_refused(book: GrantBook) -> None:
    with pytest.raises(BadGrant, match="did not sign"):
        book.check(token_of(seed=FORGER), NOW)


def test_a_signature_is_good_for_nothing_else(book: GrantBook) -> None:
    claims, _ = msgspec.msgpack.decode(token_of(sender=OTHER))
    _, signature = msgspec.msgpack.decode(token_of(sender=ME))

    with pytest.raises(BadGrant, match="did not sign"):
        book.check(msgspec.msgpack.encode([claims, signature]), NOW)


def test_what_the_registry_signed_for_another_purpose_is_no_token(book: GrantBook) -> None:
    claims, _ = msgspec.msgpack.decode(token_of())
    nonce_like = nkeys.from_seed(bytearray(REGISTRY)).sign(claims)

    with pytest.raises(BadGrant, match="did not sign"):
        book.check(msgspec.msgpack.encode([claims, nonce_like]), NOW)


@pytest.mark.parametrize("place", range(0, 200, 7))
def test_a_changed_byte_makes_a_token_worthless(book: GrantBook, place: int) -> None:
    token = bytearray(token_of())
    token[place % len(token)] ^= 1

    with pytest.raises(BadGrant):
        book.check(bytes(token), NOW)


@pytest.mark.parametrize("token", [b"", b"\xc1", b"\x92\xc4\x00\xc4\x00", b"\x91" * 5_000, b"x" * 300, b"\x90"])
def test_foreign_bytes_are_no_token(book: GrantBook, token: bytes) -> None:
    with pytest.raises(BadGrant):
        book.check(token, NOW)
    with pytest.raises(BadGrant):
        read_token(token)


@pytest.mark.parametrize("key", ["", "U", "not a key", base64.b32encode(b"short").decode()])
def test_nothing_is_good_without_the_registrys_key(key: str) -> None:
    with pytest.raises(BadGrant):
        GrantBook(key).check(token_of(), NOW)


def test_who_asked_for_a_token_reads_it_without_a_key() -> None:
    granted = read_token(token_of())

    assert (granted.sender, granted.route.steps) == (ME, ROUTE.steps)


@pytest.mark.parametrize(
    ("at", "forwarder", "waiter"),
    [(0, ME, ME), (2, "text~clean", "text~clean"), (3, "text~clean", "text~clean"), (4, "text~clean", ME)],
)
def test_a_hop_along_the_route_is_good(book: GrantBook, at: int, forwarder: str, waiter: str) -> None:
    granted, place = book.check_hop(token_of(), at, forwarder, waiter, NOW)

    assert granted.sender == ME
    assert place is granted.route.places[at]


@pytest.mark.parametrize(
    ("at", "forwarder", "waiter", "reason"),
    [
        (1, "text~clean", ME, "is no call"),
        (5, "text~clean", ME, "is no call"),
        (-1, ME, ME, "is no call"),
        (0, OTHER, ME, "does not hand over"),
        (0, "text~clean", ME, "does not hand over"),
        (4, "text~topics", ME, "does not hand over"),
        (2, "text~sentiment", "text~clean", "does not hand over"),
        (0, ME, OTHER, "does not wait"),
        (4, "text~clean", OTHER, "does not wait"),
        (4, "text~clean", "text~clean", "does not wait"),
        (0, ME, "", "does not wait"),
    ],
)
def test_a_hop_beside_the_route_is_refused(book: GrantBook, at: int, forwarder: str, waiter: str, reason: str) -> None:
    with pytest.raises(BadGrant, match=reason):
        book.check_hop(token_of(), at, forwarder, waiter, NOW)


@pytest.mark.parametrize(("at", "waiter"), [(2, ME), (3, ME), (4, ME)])
def test_the_sender_may_go_on_from_any_step_where_an_instance_cannot(book: GrantBook, at: int, waiter: str) -> None:
    granted, place = book.check_hop(token_of(), at, ME, waiter, NOW)

    assert place is granted.route.places[at]


# clean | sentiment | topics | merge, of which sentiment and topics are kept
KEPT = Route([
    CallStep(CLEAN, 1), CallStep(SENTIMENT, 2, cache_s=60.0), CallStep(TOPICS, 3, cache_s=60.0), CallStep(MERGE),
])  # fmt: skip


@pytest.mark.parametrize(
    ("at", "forwarder"), [(2, "text~sentiment"), (2, "text~clean"), (3, "text~topics"), (3, "text~clean")]
)
def test_steps_whose_results_are_kept_may_be_left_out(book: GrantBook, at: int, forwarder: str) -> None:
    book.check_hop(token_of(KEPT), at, forwarder, ME, NOW)


@pytest.mark.parametrize(
    ("at", "forwarder", "waiter"),
    [(2, "text~topics", ME), (1, "text~topics", ME), (2, OTHER, ME),
     (3, "text~clean", OTHER), (3, "text~clean", "text~clean")],
)  # fmt: skip
def test_no_other_step_may_be_left_out(book: GrantBook, at: int, forwarder: str, waiter: str) -> None:
    with pytest.raises(BadGrant):
        book.check_hop(token_of(KEPT), at, forwarder, waiter, NOW)


def test_the_sender_enters_after_what_is_kept_at_the_head(book: GrantBook) -> None:
    head = token_of(Route([CallStep(CLEAN, 1, cache_s=60.0), CallStep(TOPICS)]))

    book.check_hop(head, 1, ME, ME, NOW)

    with pytest.raises(BadGrant, match="does not hand over"):
        book.check_hop(head, 1, OTHER, ME, NOW)


def test_a_token_of_another_route_does_not_lead_along_this_one(book: GrantBook) -> None:
    other = Route([CallStep(TOPICS, 1), CallStep(MERGE)])

    with pytest.raises(BadGrant):
        book.check_hop(token_of(other), 4, "text~clean", ME, NOW)
    with pytest.raises(BadGrant, match="does not hand over"):
        book.check_hop(token_of(other), 1, "text~clean", ME, NOW)


def test_anothers_token_is_of_no_use_to_a_caller(book: GrantBook) -> None:
    with pytest.raises(BadGrant, match="k~me does not hand over"):
        book.check_hop(token_of(sender=OTHER), 0, ME, ME, NOW)


def test_a_book_keeps_few_large_tokens_and_forgets_the_oldest(book: GrantBook, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [token_of(sender=f"k~{number}") for number in range(20)]
    monkeypatch.setattr(grants, "_MOST_KNOWN_BYTES", 5 * len(tokens[-1]))

    for token in tokens:
        book.check(token, NOW)

    assert list(book._known) == tokens[-5:]


def test_the_longest_route_is_signed_and_read(book: GrantBook) -> None:
    last = MOST_STEPS - 1
    long = Route([CallStep(CLEAN, at + 1 if at < last else END) for at in range(MOST_STEPS)])

    granted, place = book.check_hop(token_of(long), last, "text~clean", ME, NOW)

    assert (len(granted.route.places), place.next) == (MOST_STEPS, END)


def test_a_warm_check_needs_no_cryptography(book: GrantBook, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Step] = [CallStep(CLEAN, 1), CallStep(TOPICS)]
    token = token_of(Route(steps))
    known = book.check(token, NOW)
    monkeypatch.setattr(book, "_verify", None)

    again, _ = book.check_hop(bytes(bytearray(token)), 1, "text~clean", ME, NOW)

    assert again is known
