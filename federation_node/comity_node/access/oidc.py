"""What an ID token must be before a person is let in (OpenID Connect Core 1.0, section 3.1.3.7; RFC 8725).

Obligations, in this order; the first that fails refuses, and no refusal repeats the token:
1. size: at most `TOKEN_BYTES_MAX`, three parts;
2. head: `alg` is one of `ALGORITHMS` (never `none`, never a shared secret), no `crit`, no `b64`, `typ` is a JWT's;
3. key: the one key of the issuer with the token's `kid` whose type fits `alg`; RSA of at least 2,048 bits;
4. signature, by PyJWT over `cryptography`;
5. `iss` is exactly the configured issuer; `aud` holds our audience, and `azp` names it if there are several;
6. `exp`, `iat`, `nbf` with `SKEW_S` of grace; the whole life is at most `lifetime_max_s`;
7. the user's name and groups are in the form that `access.model` allows; an e-mail address counts only if verified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from comity.wire.errors import ComityError
from comity_node.access.model import group_names, unauthenticated, user_name

if TYPE_CHECKING:
    from comity_node.settings import OidcSettings

TOKEN_BYTES_MAX = 16 << 10
SKEW_S = 60
RSA_BITS_MIN = 2_048
# alg -> (kty, crv) of the key (RFC 7518, RFC 8037).
ALGORITHMS: Mapping[str, tuple[str, str | None]] = {
    "RS256": ("RSA", None),
    "ES256": ("EC", "P-256"),
    "EdDSA": ("OKP", "Ed25519"),
}
_TYPES = frozenset({"jwt", "at+jwt", "application/jwt"})


@dataclass(frozen=True, slots=True)
class Head:
    """What a token says of itself before anything is believed; `kid` may be empty."""

    algorithm: str
    kid: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the issuer says it is, and until when."""

    user: str
    groups: tuple[str, ...]
    issuer: str
    until: datetime


def read_head(token: str) -> Head:
    """Check obligations 1 and 2. Raises `UNAUTHENTICATED`."""
    # Imported here: a node without an identity provider does not pay for it.
    import jwt

    if len(token) > TOKEN_BYTES_MAX or token.count(".") != 2:
        raise unauthenticated("no token, or one that is too large")
    try:
        head = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise unauthenticated("the ID token cannot be read") from None
    algorithm, kid, kind = head.get("alg"), head.get("kid", ""), head.get("typ", "JWT")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise unauthenticated(f"an ID token is signed with {', '.join(ALGORITHMS)}")
    if "crit" in head or "b64" in head:
        raise unauthenticated("the ID token asks for an extension that is not known here")
    if not isinstance(kind, str) or kind.lower() not in _TYPES or not isinstance(kid, str) or len(kid) > 512:
        raise unauthenticated("the ID token's head has not the right form")
    return Head(algorithm, kid)


def matching(head: Head, keys: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the issuer's keys that may have signed: right id, right type, meant for signatures."""
    kty, crv = ALGORITHMS[head.algorithm]
    return [
        key
        for key in keys
        if (key.get("kid") == head.kid if head.kid else True)
        and key.get("kty") == kty
        and (crv is None or key.get("crv") == crv)
        and key.get("use", "sig") == "sig"
        and key.get("alg", head.algorithm) == head.algorithm
    ]


def verify(token: str, keys: Sequence[Mapping[str, Any]], settings: OidcSettings) -> Identity:
    """Check every obligation and return who it is; `keys` are the issuer's public keys (RFC 7517).

    Raises:
        ComityError: `UNAUTHENTICATED`, naming the obligation in words.
    """
    import jwt

    head = read_head(token)
    fitting = matching(head, keys)
    if len(fitting) != 1:
        raise unauthenticated("the issuer has not exactly one key for this ID token")
    try:
        claims = jwt.decode(
            token,
            _public_key(fitting[0], head.algorithm),
            algorithms=[head.algorithm],
            audience=settings.audience,
            issuer=settings.issuer,
            leeway=SKEW_S,
            options={"require": ["exp", "iat", "iss", "aud"]},
        )
    except jwt.ExpiredSignatureError:
        raise unauthenticated("the ID token has expired: log in again") from None
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise unauthenticated(f"the ID token does not hold: {_REASONS.get(type(error).__name__, 'form')}") from None
    _check_party(claims, settings)
    until = _life(claims, settings.lifetime_max_s)
    try:
        return Identity(_user(claims, settings), _groups(claims, settings), settings.issuer, until)
    except ComityError as error:
        raise unauthenticated(f"the ID token's claims: {error.detail}") from None


# Words of ours for the library's exceptions, whose own text could repeat a claim.
_REASONS = {
    "InvalidSignatureError": "its signature",
    "InvalidAudienceError": "it was made for another audience",
    "InvalidIssuerError": "it comes from another issuer",
    "ImmatureSignatureError": "it is not valid yet: compare the clocks",
    "InvalidIssuedAtError": "its time of issue",
    "MissingRequiredClaimError": "a claim is missing (exp, iat, iss, aud)",
    "InvalidKeyError": "the issuer's key",
    "PyJWKError": "the issuer's key",
}


def _public_key(entry: Mapping[str, Any], algorithm: str) -> Any:
    import jwt
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    public = {name: entry[name] for name in ("kty", "n", "e", "crv", "x", "y") if name in entry}
    key = jwt.PyJWK(public, algorithm=algorithm).key
    if isinstance(key, RSAPublicKey) and key.key_size < RSA_BITS_MIN:
        raise jwt.InvalidKeyError
    return key


def _check_party(claims: Mapping[str, Any], settings: OidcSettings) -> None:
    ours = {settings.audience, settings.client_id or settings.audience}
    several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
    party = claims.get("azp", None if several else settings.audience)
    if not isinstance(party, str) or party not in ours:
        raise unauthenticated("the ID token was given to another client")


def _life(claims: Mapping[str, Any], lifetime_max_s: int) -> datetime:
    """Return when the token ends. Raises `UNAUTHENTICATED` if it lives too long, or ends before time does."""
    issued, ends = claims["iat"], claims["exp"]
    if isinstance(issued, bool) or isinstance(ends, bool) or ends - issued > lifetime_max_s:
        raise unauthenticated("the ID token lives longer than this node accepts")
    try:
        return datetime.fromtimestamp(int(ends) + SKEW_S, tz=UTC)
    except (ValueError, OverflowError, OSError):
        raise unauthenticated("the ID token's end is no instant") from None


def _user(claims: Mapping[str, Any], settings: OidcSettings) -> str:
    if settings.user_claim == "email" and claims.get("email_verified") is not True:
        raise unauthenticated("the e-mail address is not verified")
    return user_name(claims.get(settings.user_claim))


def _groups(claims: Mapping[str, Any], settings: OidcSettings) -> tuple[str, ...]:
    found = claims.get(settings.groups_claim, [])
    return group_names([found] if isinstance(found, str) else found)
