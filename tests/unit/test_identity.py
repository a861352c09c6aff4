"""Keys, instance tokens, secret files and user tokens, without a server."""

import base64
import json
import stat
from pathlib import Path

import nkeys
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algomesh_broker import credentials
from algomesh_broker.authorization import authorization_config
from algomesh_broker.errors import BadMessage, BadName, Unauthenticated
from algomesh_broker.identity import (
    Identity,
    caller_of_key,
    key_id,
    new_key,
    raw_public_key,
    sign_instance_token,
    verify_instance_token,
)
from algomesh_broker.names import VersionId, check_caller
from algomesh_broker.permissions import Permissions
from algomesh_broker.usertoken import AuthRequest, Issuer, read_request

CLEAN = VersionId.parse("text/clean/1.0.0")


@pytest.fixture
def seed() -> bytes:
    return bytes(nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER))


@pytest.fixture
def issuer() -> Issuer:
    return Issuer(bytes(nkeys.encode_seed(bytes(32), nkeys.PREFIX_BYTE_ACCOUNT)))


class TestKeys:
    def test_a_new_key_tells_its_id(self) -> None:
        key = new_key()

        assert key.split("_")[1] == key_id(key)
        assert new_key() != key

    def test_any_text_can_be_a_key_and_has_an_id_that_does_not_tell_it(self) -> None:
        caller = caller_of_key("correct horse battery staple")

        assert caller == caller_of_key("correct horse battery staple")
        assert caller != caller_of_key("correct horse battery stapler")
        assert "horse" not in caller
        assert len(caller) == len("k~") + 16

    @given(st.text(min_size=1, max_size=100).filter(str.isprintable))
    def test_every_printable_text_gives_a_caller_that_a_subject_can_hold(self, text: str) -> None:
        if not text.startswith("ai_"):
            check_caller(caller_of_key(text))

    @pytest.mark.parametrize("text", ["", "two\nlines", "x" * 513, "nul\x00", "ai_looks.like-a-token"])
    def test_what_cannot_be_a_key_is_refused_without_being_repeated(self, text: str) -> None:
        with pytest.raises(Unauthenticated) as refused:
            Identity.of_key(text)

        assert not text or text not in str(refused.value)

    def test_secrets_do_not_show_in_a_repr(self) -> None:
        key = new_key()

        assert key not in repr(Identity.of_key(key))
        assert "SEED" not in repr(Identity.of_program("registry", b"SEED"))


class TestInstanceTokens:
    def test_a_token_says_who_signed_it_and_for_whom(self, seed: bytes) -> None:
        token = sign_instance_token(CLEAN, "host-1", seed, lifetime_s=60, now=1000.0)

        claims = verify_instance_token(token, [credentials.public_key(seed)], 1059.0)

        assert (claims.version_id, claims.instance, claims.expires) == (CLEAN, "host-1", 1060.0)

    def test_a_token_is_over_in_time(self, seed: bytes) -> None:
        token = sign_instance_token(CLEAN, "host-1", seed, lifetime_s=60, now=1000.0)

        with pytest.raises(Unauthenticated, match="is over"):
            verify_instance_token(token, [credentials.public_key(seed)], 1060.0)

    def test_another_launchers_signature_is_worth_nothing(self, seed: bytes) -> None:
        other = bytes(nkeys.encode_seed(bytes(32), nkeys.PREFIX_BYTE_USER))
        token = sign_instance_token(CLEAN, "host-1", other)

        with pytest.raises(Unauthenticated, match="no launcher"):
            verify_instance_token(token, [credentials.public_key(seed)], 0.0)
        assert verify_instance_token(token, [credentials.public_key(seed), credentials.public_key(other)], 0.0)

    def test_a_changed_claim_breaks_the_signature(self, seed: bytes) -> None:
        body, _, signature = sign_instance_token(CLEAN, "host-1", seed).removeprefix("ai_").partition(".")
        claims = base64.urlsafe_b64decode(body + "==").replace(b"clean", b"steal")
        forged = f"ai_{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.{signature}"

        with pytest.raises(Unauthenticated, match="no launcher"):
            verify_instance_token(forged, [credentials.public_key(seed)], 0.0)

    def test_a_signature_over_a_servers_nonce_is_no_token(self, seed: bytes) -> None:
        body = base64.urlsafe_b64decode(sign_instance_token(CLEAN, "host-1", seed).split(".")[0][3:] + "==")
        signature = nkeys.from_seed(bytearray(seed)).sign(body)
        forged = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (body, signature))

        with pytest.raises(Unauthenticated):
            verify_instance_token(f"ai_{forged}", [credentials.public_key(seed)], 0.0)

    @given(st.text(max_size=200))
    def test_garbage_is_refused(self, text: str) -> None:
        public = credentials.public_key(bytes(nkeys.encode_seed(bytes(32), nkeys.PREFIX_BYTE_USER)))
        with pytest.raises(Unauthenticated):
            verify_instance_token(f"ai_{text}", [public], 0.0)

    @pytest.mark.parametrize("instance", ["registry", "a.b-1", "host-*", ""])
    def test_what_is_no_instance_is_not_signed_for(self, seed: bytes, instance: str) -> None:
        with pytest.raises(BadName):
            sign_instance_token(CLEAN, instance, seed)


class TestSecretFiles:
    def test_they_are_private_and_stay_what_they_are(self, tmp_path: Path) -> None:
        folder = tmp_path / "secrets"
        credentials.ensure_secrets(folder)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}

        credentials.ensure_secrets(folder)

        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
        assert credentials.read_launchers(folder) == (
            credentials.public_key(credentials.read_seed(folder, "launcher")),
        )

    def test_the_administrators_key_is_given_kept_or_made(self, tmp_path: Path) -> None:
        made = credentials.ensure_admin_key(tmp_path)

        assert credentials.ensure_admin_key(tmp_path) == made
        assert credentials.ensure_admin_key(tmp_path, "another") == "another"
        assert credentials.ensure_admin_key(tmp_path) == "another"
        assert credentials.read_admin_key(tmp_path / "nowhere") is None
        with pytest.raises(Unauthenticated):
            credentials.ensure_admin_key(tmp_path, "two\nlines")

    def test_the_servers_configuration_holds_no_secret(self, tmp_path: Path) -> None:
        credentials.ensure_secrets(tmp_path)

        text = authorization_config(tmp_path)

        for path in tmp_path.glob("*.nk"):
            seed = path.read_bytes().strip()
            assert seed.decode() not in text
            assert credentials.public_key(seed) in text


class TestUserTokens:
    def request(self, token: str = "secret-key") -> AuthRequest:
        return AuthRequest(server="NSERVER", user_nkey="UUSER", host="127.0.0.1", token=token)

    def claims(self, token: str) -> dict[str, object]:
        body = token.split(".")[1]
        claims: dict[str, object] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return claims

    def test_a_request_is_read(self) -> None:
        nats = {
            "server_id": {"name": "n", "id": "NSERVER"},
            "user_nkey": "UUSER",
            "client_info": {"host": "127.0.0.1", "id": 5},
            "connect_opts": {"auth_token": "secret-key", "name": "sdk", "protocol": 1},
            "type": "authorization_request",
        }
        body = base64.urlsafe_b64encode(json.dumps({"iss": "N", "nats": nats}).encode()).rstrip(b"=")

        assert read_request(memoryview(b"e30." + body + b".c2ln")) == self.request()

    @pytest.mark.parametrize("payload", [b"", b"a.b", b"a.b.c", b"\xff.\xff.\xff", b"e30.e30.e30", b"e30.W10.x"])
    def test_what_is_no_request_is_refused(self, payload: bytes) -> None:
        with pytest.raises(BadMessage):
            read_request(payload)

    def test_an_acceptance_holds_a_signed_token_with_the_permissions(self, issuer: Issuer) -> None:
        allowed = Permissions(["call.a.b.*.k~1"], ["call.a.b.* workers"])

        answer = issuer.accept(self.request(), "k~1", allowed, 2000.0, now=1000.0).decode()

        outer = self.claims(answer)
        inner = self.claims(outer["nats"]["jwt"])  # type: ignore[index]
        assert (outer["aud"], outer["sub"], outer["iss"]) == ("NSERVER", "UUSER", issuer.public_key)
        assert (inner["aud"], inner["sub"], inner["name"], inner["exp"]) == ("MESH", "UUSER", "k~1", 2000)
        assert inner["nats"]["pub"] == {"allow": allowed.publish}  # type: ignore[index]
        assert inner["nats"]["sub"] == {"allow": allowed.subscribe}  # type: ignore[index]

    def test_answers_are_signed_by_the_issuer(self, issuer: Issuer) -> None:
        from nacl.signing import VerifyKey

        answer = issuer.refuse(self.request(), "no", now=1000.0)

        signed, _, signature = answer.rpartition(b".")
        VerifyKey(raw_public_key(issuer.public_key)).verify(signed, base64.urlsafe_b64decode(signature + b"=="))

    def test_a_refusal_does_not_hold_the_key(self, issuer: Issuer) -> None:
        answer = issuer.refuse(self.request("am_secret"), "the mesh does not know this key", now=1000.0).decode()

        assert self.claims(answer)["nats"]["error"] == "the mesh does not know this key"  # type: ignore[index]
        assert "am_secret" not in str(self.claims(answer))
