"""Whatever somebody presents: it is refused as `UNAUTHENTICATED`, never believed, never a crash, never repeated."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_node.access import store as _tables  # noqa: F401 - defines its table
from comity_node.access.model import LOCAL, ROLES
from comity_node.access.oidc import verify
from comity_node.access.service import AccessService
from comity_node.journal import Journal
from comity_node.settings import OidcSettings
from comity_policies.access import Granted

BOUNDED = settings(max_examples=60, deadline=None)
OIDC = OidcSettings(issuer="https://id.example", audience="comity")
KEY = ec.generate_private_key(ec.SECP256R1())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def jwk() -> dict[str, str]:
    numbers = KEY.public_key().public_numbers()
    x, y = (base64.urlsafe_b64encode(n.to_bytes(32, "big")).rstrip(b"=").decode() for n in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": "P-256", "kid": "k", "use": "sig", "alg": "ES256", "x": x, "y": y}


class Everything:
    """A policy that gives every role, so that a wrong principal would show."""

    def roles(self, document: dict) -> Granted:
        return Granted(ROLES)


class Keys:
    async def get(self, kid: str) -> tuple[dict[str, str], ...]:
        return (jwk(),)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AccessService]:
    folder: Path = tmp_path_factory.mktemp("access")
    journal = Journal.open(folder / "journal.db")
    journal.create_all()
    yield AccessService(journal, Everything(), instants.now, OIDC, Keys())
    journal.close()


def refusal(service: AccessService, credentials: str) -> ComityError:
    with pytest.raises(ComityError) as error:
        asyncio.run(service.over_socket("t" * 43)(credentials))
    return error.value


def shaped() -> st.SearchStrategy[str]:
    """Text in the shape of a token or an ID token."""
    part = JSON.map(lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode())
    hexes, letters = "0123456789abcdef", "abcdefghijklmnopqrstuvwxyzABC0123456789-_"
    token = st.tuples(st.text(hexes, min_size=16, max_size=16), st.text(letters, min_size=40, max_size=45))
    return st.one_of(
        st.text(max_size=300),
        st.tuples(part, part, part).map(".".join),
        token.map(lambda found: f"comity_{found[0]}_{found[1]}"),
    )


@BOUNDED
@given(credentials=shaped())
def test_nothing_made_up_is_believed(service, credentials) -> None:
    error = refusal(service, credentials)
    assert error.code is ErrorCode.UNAUTHENTICATED
    assert len(credentials) < 24 or credentials not in f"{error} {error.to_json()}"


@BOUNDED
@given(place=st.integers(0, 66), letter=st.characters(codec="ascii", min_codepoint=33))
def test_a_token_with_one_other_character_is_none(service, place, letter) -> None:
    text = asyncio.run(service.issue(LOCAL, "bob", frozenset({"auditor"}), 600)).text
    assume(text[place] != letter)
    assert refusal(service, text[:place] + letter + text[place + 1 :]).code is ErrorCode.UNAUTHENTICATED


CLAIMS = ("iss", "aud", "sub", "exp", "iat", "nbf", "azp", "groups", "jti")


@BOUNDED
@given(
    changes=st.dictionaries(st.sampled_from(CLAIMS), JSON, min_size=1, max_size=3),
    head=st.dictionaries(st.sampled_from(["typ", "kid", "crit", "cty", "jwk", "jku", "x5c"]), JSON, max_size=2),
)
def test_signed_claims_of_any_form_are_judged_and_never_crash(changes, head) -> None:
    """The issuer itself may sign nonsense: either every obligation holds, or it is refused."""
    now = int(time.time())
    claims = {"iss": OIDC.issuer, "aud": OIDC.audience, "sub": "ada", "iat": now, "exp": now + 60, **changes}
    try:
        token = jwt.encode(claims, KEY, algorithm="ES256", headers={"kid": "k", **head})
    except (TypeError, ValueError, jwt.PyJWTError):
        return  # nobody can sign this
    try:
        found = verify(token, [jwk()], OIDC)
    except ComityError as error:
        code = error.code
    else:
        code = None
    assert code in (None, ErrorCode.UNAUTHENTICATED)
    if code is not None:
        return
    assert (claims["iss"], found.user) == (OIDC.issuer, claims["sub"])
    assert OIDC.audience in ([claims["aud"]] if isinstance(claims["aud"], str) else claims["aud"])
    assert claims["exp"] > now - 61
    assert "crit" not in head
