"""An organisation's signature over a bundle: whoever may decide what decides (negotiation.md section 4).

Rules: the signature is a statement of kind `bundle` over the digest, in `.signature` beside `data.json`; it holds for
exactly one digest, so that a changed setting, another module, or the policies of a newer release need a new one.
"""

from __future__ import annotations

from pathlib import Path

from comity.wire.errors import ComityError
from comity_crypto.keys import OrgKeys
from comity_crypto.statements import Statement, sign_statement, verify_statement
from comity_policies import portable
from comity_policies.bundle import SIGNATURE_BYTES_MAX, SIGNATURE_FILE, Bundle, read_bounded

KIND = "bundle"


def sign_bundle(bundle: Bundle, keys: OrgKeys, *, consortium: str, org: str) -> Statement:
    """Return the statement of `org` that this bundle may decide for it."""
    return sign_statement(keys, kind=KIND, consortium=consortium, issuer=org, body={"digest": bundle.digest})


def check_signature(bundle: Bundle, folder: Path, key: bytes, *, consortium: str, org: str) -> None:
    """Check that `.signature` in `folder` is `org`'s, over this very bundle.

    Args:
        key: the organisation's Ed25519 statement key, 32 bytes.

    Raises:
        ComityError: `BUNDLE_INVALID` if it is missing, of somebody else, or over something else.
    """
    path = folder / SIGNATURE_FILE
    if not path.exists():
        raise portable.refuse("the bundle is not signed; `comity policy sign` signs it")
    try:
        statement = Statement.from_bytes(read_bounded(path, SIGNATURE_BYTES_MAX), max_bytes=SIGNATURE_BYTES_MAX)
        verify_statement(statement, key, kind=KIND, consortium=consortium)
    except ComityError as error:
        raise portable.refuse(f"the bundle's signature does not hold: {error.detail or error.code}") from error
    if statement.issuer != org or statement.body != {"digest": bundle.digest}:
        raise portable.refuse("the bundle was changed after it was signed; `comity policy sign` signs it anew")
