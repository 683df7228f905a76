"""Charters that this node has verified, from genesis on, and the signatures that it gave (negotiation.md section 6).

Rules:
1. A charter enters only through `accept`, which verifies it against the one before it, and the genesis charter against
   the digest that a person typed: at `join` or when signing.
2. A node signs at most one successor for each version; a second, different one is refused until so many members have
   denied the first that it can never be certified, or a person takes the responsibility (docs/charter.md). Drafts of
   the genesis charter may change while founders are still joining, and each is signed by its typed digest.
3. The coordinator's log key in the genesis charter is the one that a founder pinned at enrolment. A later charter is
   stated by the log that it names itself, and the members' certificate decides, not the log.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy import Connection

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.quorum import QuorumCertificate
from comity_crypto.statements import Statement, verify_statement
from comity_node.journal import Journal, metadata
from comity_node.settings import NodeSettings
from comity_policies.charter import Charter, Member, genesis_name, matches_genesis, verify_genesis, verify_successor

GENESIS_VERSION = 1
CHARTER_KIND = "charter"
NOT_AS_TYPED = (
    "not the digest that was typed at join; if that was mistyped, correct `genesis` in node.json (null for a founder)"
    " and restart the node"
)

_charters = sa.Table(
    "governance_charters",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.Text, nullable=False, unique=True),
    sa.Column("statement", sa.LargeBinary, nullable=False),
    sa.Column("accepted_at", sa.Text, nullable=False),
)
_signatures = sa.Table(
    "governance_signatures",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("signed_at", sa.Text, nullable=False),
)


class CharterStore:
    """The verified chain of charters; reads are from memory."""

    def __init__(self, settings: NodeSettings, journal: Journal) -> None:
        self._settings = settings
        self._journal = journal
        self._chain: list[Charter] = []
        self._by_digest: dict[str, Charter] = {}
        self._stated = ""

    def load(self) -> None:
        """Read the chain from the journal; call once the tables exist."""
        query = sa.select(_charters.c.statement).order_by(_charters.c.version)
        rows = self._journal.transact(lambda conn: list(conn.execute(query).scalars()))
        self._chain = [Charter.from_json(Statement.from_bytes(row).body["charter"]) for row in rows]
        self._stated = hashlib.sha256(rows[-1]).hexdigest() if rows else ""
        self._by_digest = {charter.digest: charter for charter in self._chain}

    def current(self) -> Charter | None:
        """Return the charter in force, None before genesis."""
        return self._chain[-1] if self._chain else None

    def in_force(self) -> Charter:
        """Return the charter in force. Raises `CHARTER_INVALID` before genesis."""
        if not self._chain:
            raise ComityError(ErrorCode.CHARTER_INVALID, "there is no charter yet: the founders have to sign genesis")
        return self._chain[-1]

    def statements_in_force(self) -> tuple[str, ...]:
        """Return the digest of the statement that put the charter into force; nothing before genesis."""
        return (self._stated,) if self._stated else ()

    def at(self, digest: str) -> Charter | None:
        """Return the verified charter with this digest."""
        return self._by_digest.get(digest)

    def knows(self, statement: Statement) -> bool:
        """Tell whether a charter of this version is in force or was."""
        charter = statement.body.get("charter")
        version = charter.get("version") if isinstance(charter, dict) else None
        return isinstance(version, int) and version < self.next_version()

    def former_members(self) -> dict[str, Member]:
        """Return whoever was a member and is none now, as the last charter that named it did."""
        named = {member.org: member for charter in self._chain for member in charter.members}
        here = self._chain[-1].organisations if self._chain else ()
        return {org: member for org, member in named.items() if org not in here}

    def statement_keys(self, organisation: str) -> set[bytes]:
        """Return every statement key that a verified charter ever named for `organisation`."""
        named = (member for charter in self._chain for member in charter.members)
        return {member.keys.statement for member in named if member.org == organisation}

    def genesis_name(self) -> str | None:
        """Return the consortium's name for people, None before genesis."""
        return genesis_name(self._chain[0]) if self._chain else None

    def next_version(self) -> int:
        """Return the version that would follow."""
        return len(self._chain) + GENESIS_VERSION

    async def accept(self, statement: Statement) -> bool:
        """Verify a final charter and put it into force; False if it was in force before.

        Raises:
            ComityError: `SIGNATURE_INVALID`, `GENESIS_MISMATCH`, `CHARTER_INVALID`, `QUORUM_MISSING`, `MALFORMED`,
                `JOURNAL_UNWRITABLE`.
        """
        charter, certificate = _read(statement)
        if self.at(charter.digest) is not None:
            return False
        if charter.version != self.next_version():
            raise ComityError(ErrorCode.CHARTER_INVALID, "not the next version", version=charter.version)
        previous = self.current()
        log_key = charter.log_public_key
        # A newcomer typed the genesis digest, and may join at a later coordinator's: the chain names that one's log.
        founder = previous is None and self._settings.genesis is None
        if founder and not hmac.compare_digest(log_key, self._settings.log_key_bytes):
            raise ComityError(ErrorCode.CHARTER_INVALID, "the genesis charter names another log key than enrolment did")
        verify_statement(statement, log_key, kind=CHARTER_KIND, consortium=self._settings.consortium)
        if previous is None:
            await self._check_genesis(charter)
            verify_genesis(charter, certificate)
        else:
            verify_successor(previous, charter, certificate)
        if charter.consortium != self._settings.consortium:
            raise ComityError(ErrorCode.CHARTER_INVALID, "a charter of another consortium")
        await self._journal.run(lambda conn: _insert(conn, charter, statement))
        if charter.version == self.next_version():
            self._chain.append(charter)
            self._stated = statement.digest
            self._by_digest[charter.digest] = charter
        return True

    def signed(self, conn: Connection, version: int) -> set[str]:
        """Return the digests of the charters of this version that this node has signed."""
        query = sa.select(_signatures.c.digest).where(_signatures.c.version == version)
        return set(conn.execute(query).scalars())

    def sign_once(self, conn: Connection, charter: Charter, released: Collection[str] = ()) -> None:
        """Note that this node signs `charter`.

        Args:
            conn: the transaction in which the signature is sent.
            charter: the genesis draft, or a successor.
            released: digests that this node signed and that can never be certified any more (rule 2).

        Raises:
            ComityError: `CONFLICT` if this node signed another successor.
        """
        signed = self.signed(conn, charter.version)
        if charter.digest in signed:
            return
        held = sorted(signed - set(released))
        if held and charter.version > GENESIS_VERSION:
            raise ComityError(ErrorCode.CONFLICT, "this node signed another charter of this version", signed=held[0])
        conn.execute(
            _signatures.insert().values(version=charter.version, digest=charter.digest, signed_at=instants.now_text())
        )

    async def _check_genesis(self, charter: Charter) -> None:
        """Check the digest against what a person typed, at `join` or when signing."""
        if self._settings.genesis is not None:
            if matches_genesis(charter, self._settings.genesis):
                return
            raise ComityError(ErrorCode.GENESIS_MISMATCH, NOT_AS_TYPED)
        query = sa.select(_signatures.c.digest).where(_signatures.c.version == GENESIS_VERSION)
        if charter.digest not in await self._journal.run(lambda conn: set(conn.execute(query).scalars())):
            raise ComityError(ErrorCode.GENESIS_MISMATCH, "this founder did not sign this genesis charter")


def _read(statement: Statement) -> tuple[Charter, QuorumCertificate]:
    body = statement.body
    if set(body) != {"charter", "certificate", "signatures"}:
        raise ComityError(ErrorCode.MALFORMED, "a charter statement holds charter, certificate and signatures")
    return Charter.from_json(body["charter"]), QuorumCertificate.from_json(body["certificate"])


def _insert(conn: Connection, charter: Charter, statement: Statement) -> None:
    found = conn.execute(sa.select(_charters.c.digest).where(_charters.c.version == charter.version)).scalar()
    if found == charter.digest:
        return
    if found is not None:
        raise ComityError(ErrorCode.CHARTER_INVALID, "another charter of this version is in force")
    conn.execute(
        _charters.insert().values(
            version=charter.version,
            digest=charter.digest,
            statement=statement.to_bytes(),
            accepted_at=instants.now_text(),
        )
    )
