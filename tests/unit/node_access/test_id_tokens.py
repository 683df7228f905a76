"""ID tokens against a real issuer: what counts, what does not, and why nothing of a token is ever repeated."""

from __future__ import annotations

import base64
import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from comity.wire.errors import ComityError, ErrorCode
from comity_node.access.oidc import TOKEN_BYTES_MAX, verify
from comity_node.settings import OidcSettings


def refused(token, keys, oidc) -> str:
    with pytest.raises(ComityError) as error:
        verify(token, keys, oidc)
    assert error.value.code is ErrorCode.UNAUTHENTICATED
    assert error.value.__cause__ is None
    shown = f"{error.value!r} {error.value} {error.value.to_json()}"
    assert len(token) < 20 or token not in shown
    return error.value.detail


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_good_token_says_who_it_is(issuer, oidc, algorithm) -> None:
    found = verify(issuer.token(algorithm), issuer.key_set(), oidc)
    assert (found.user, found.groups, found.issuer) == ("ada", ("board",), issuer.url)
    assert 300 < found.until.timestamp() - time.time() <= 360


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_no_algorithm_and_shared_secrets_are_refused(issuer, oidc) -> None:
    head, claims, _ = issuer.token("RS256").split(".")
    assert "signed with" in refused(f"{part({'alg': 'none'})}.{claims}.", issuer.key_set(), oidc)
    public = issuer.keys["RS256"][1].public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    # The classic confusion: the public key as the secret of an HMAC.
    import hashlib
    import hmac

    confused = f"{part({'alg': 'HS256', 'kid': issuer.keys['RS256'][0]})}.{claims}"
    mac = base64.urlsafe_b64encode(hmac.new(pem, confused.encode(), hashlib.sha256).digest()).rstrip(b"=").decode()
    assert "signed with" in refused(f"{confused}.{mac}", issuer.key_set(), oidc)
    for other in ("RS384", "PS256", "ES384", "ES256K", ["RS256"], None):
        refused(f"{part({'alg': other})}.{claims}.AAAA", issuer.key_set(), oidc)
    del head


def test_a_key_serves_its_own_algorithm_only(issuer, oidc) -> None:
    kid = issuer.keys["ES256"][0]
    assert "exactly one key" in refused(issuer.token("RS256", {"kid": kid}), issuer.key_set(), oidc)
    keys = issuer.key_set()
    for key in keys:
        key["use"] = "enc"
    assert "exactly one key" in refused(issuer.token("ES256"), keys, oidc)
    twice = issuer.key_set() + issuer.key_set()
    assert "exactly one key" in refused(issuer.token("ES256"), twice, oidc)
    assert "exactly one key" in refused(issuer.token("ES256", {"kid": "unknown"}), issuer.key_set(), oidc)


def test_without_a_key_id_the_only_fitting_key_counts(issuer, oidc) -> None:
    _, key = issuer.keys["ES256"]
    now = int(time.time())
    claims = {"iss": issuer.url, "aud": "comity-node", "iat": now, "exp": now + 60, "sub": "ada"}
    token = jwt.encode(claims, key, algorithm="ES256")
    assert verify(token, issuer.key_set(), oidc).user == "ada"


def test_a_short_rsa_key_is_refused(issuer, oidc) -> None:
    issuer.keys["RS256"] = ("short", rsa.generate_private_key(public_exponent=65537, key_size=1024))
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        token = issuer.token("RS256")
    assert "key" in refused(token, issuer.key_set(), oidc)


def test_another_signer_is_refused(issuer, oidc) -> None:
    keys = issuer.key_set()
    issuer.keys["ES256"] = (issuer.keys["ES256"][0], ec.generate_private_key(ec.SECP256R1()))
    assert "signature" in refused(issuer.token("ES256"), keys, oidc)


def test_a_changed_claim_is_refused(issuer, oidc) -> None:
    head, claims, signature = issuer.token("ES256").split(".")
    body = json.loads(base64.urlsafe_b64decode(claims + "=="))
    assert "signature" in refused(f"{head}.{part({**body, 'sub': 'eve'})}.{signature}", issuer.key_set(), oidc)


def after(seconds: int):
    """An instant that far from the test's own moment, which may be long after it was collected."""
    return lambda: int(time.time()) + seconds


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"iss": "https://evil.example"}, "another issuer"),
        ({"aud": "another-app"}, "another audience"),
        ({"aud": ["comity-node", "another-app"]}, "another client"),
        ({"aud": ["comity-node", "another-app"], "azp": "another-app"}, "another client"),
        ({"azp": "another-app"}, "another client"),
        ({"azp": ["comity-node"]}, "another client"),
        ({"aud": None}, "missing"),
        ({"exp": None}, "missing"),
        ({"iat": None}, "missing"),
        ({"iss": None}, "another issuer|missing"),
        ({"iat": after(-900), "exp": after(-120)}, "expired"),
        ({"nbf": after(600)}, "not valid yet"),
        ({"iat": after(600), "exp": after(900)}, "not valid yet|time of issue"),
        ({"exp": after(200_000)}, "lives longer"),
        ({"exp": "soon"}, "hold"),
        ({"exp": 10**30, "iat": 10**30 - 5}, "not valid yet|hold|instant"),
        ({"sub": None}, "user"),
        ({"sub": "local"}, "user"),
        ({"sub": "group:board"}, "user"),
        ({"sub": "a b"}, "user"),
        ({"sub": "x" * 200}, "user"),
        ({"sub": 7}, "user|hold"),
        ({"groups": "x" * 300}, "group"),
        ({"groups": [7]}, "group"),
        ({"groups": {"board": True}}, "group"),
        ({"groups": ["g"] * 300}, "group"),
    ],
)
def test_each_obligation_refuses(issuer, oidc, claims, words) -> None:
    import re

    now = {name: claim() if callable(claim) else claim for name, claim in claims.items()}
    assert re.search(words, refused(issuer.token(**now), issuer.key_set(), oidc))


def test_the_grace_is_a_minute(issuer, oidc) -> None:
    now = int(time.time())
    assert verify(issuer.token(iat=now - 600, exp=now - 30), issuer.key_set(), oidc).user == "ada"
    assert verify(issuer.token(nbf=now + 30), issuer.key_set(), oidc).user == "ada"


def test_heads_that_ask_for_more_are_refused(issuer, oidc) -> None:
    for extra in ({"crit": ["exp"]}, {"b64": False}, {"typ": "logout+jwt"}, {"typ": 7}, {"kid": "k" * 600}):
        try:
            token = issuer.token("ES256", extra)
        except (jwt.PyJWTError, TypeError):
            _, claims, signature = issuer.token("ES256").split(".")
            token = f"{part({'alg': 'ES256', **extra})}.{claims}.{signature}"
        refused(token, issuer.key_set(), oidc)


@pytest.mark.parametrize("text", ["", "a.b.c", "a.b", "..", "x" * (TOKEN_BYTES_MAX + 1), "é.é.é", "[" * 9_000 + ".a.b"])
def test_what_is_no_token_is_refused(issuer, oidc, text) -> None:
    refused(text, issuer.key_set(), oidc)


def test_keys_that_are_none_are_refused(issuer, oidc) -> None:
    token = issuer.token("ES256")
    good = issuer.key_set()
    for damage in ({"x": "AAAA"}, {"x": 7}, {"crv": "P-521"}, {"kty": "oct", "k": "AAAA"}, {"y": None}):
        keys = [{**key, **damage} if key["alg"] == "ES256" else key for key in good]
        refused(token, keys, oidc)
    # A private key that the issuer published by mistake is not taken for anything more than its public half.
    assert verify(token, [{**key, "d": "AAAA"} for key in good], oidc).user == "ada"


def test_an_address_counts_only_if_verified(issuer) -> None:
    oidc = OidcSettings(issuer=issuer.url, audience="comity-node", user_claim="email")
    keys = issuer.key_set()
    token = issuer.token(email="ada@hospital.example", email_verified=True)
    assert verify(token, keys, oidc).user == "ada@hospital.example"
    for unsure in (None, False, "true"):
        assert "not verified" in refused(issuer.token(email="ada@x.example", email_verified=unsure), keys, oidc)


def test_a_named_client_may_have_asked(issuer) -> None:
    oidc = OidcSettings(issuer=issuer.url, audience="comity-node", client_id="comity-cli")
    token = issuer.token(aud=["comity-node", "comity-cli"], azp="comity-cli")
    assert verify(token, issuer.key_set(), oidc).user == "ada"
