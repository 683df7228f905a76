"""The genesis charter, its signatures, and putting charters into force: each one transaction.

Every later charter is proposed and voted on by members (`ballots.py`); the genesis is signed by all founders.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.governance import model, store
from comity_coordinator.governance.ballots import Ballots
from comity_coordinator.governance.ports import Append, Send
from comity_coordinator.inbound import Handler, Outbox
from comity_coordinator.membership import store as membership_store
from comity_crypto.encoding import fields, from_base64
from comity_crypto.quorum import QuorumCertificate, bls_verify, make_certificate, message_for
from comity_crypto.statements import Statement, verify_statement
from comity_policies.charter import Charter, Member, genesis_name, verify_genesis, verify_successor

SIGNATURE = "charter-signature"
FINAL = "charter.final"
CHARTERS_PAGE = 64
_BLS_BYTES = 96
_SIGNATURE_BYTES_MAX = 4_096


def charter_in_force(conn: Connection) -> Charter | None:
    """Return the newest charter, None before genesis."""
    data = store.newest_charter(conn)
    return None if data is None else _charter_of(data)


@functools.lru_cache(maxsize=4)
def _charter_of(data: bytes) -> Charter:
    """Read a stored charter once: its members' keys cost milliseconds, and every message asks for it."""
    return Charter.from_json(Statement.from_bytes(data).body["charter"])


def genesis_in_force(conn: Connection) -> str | None:
    """Return the consortium's name for people (`genesis_name`), None before genesis."""
    found = store.charters_from(conn, 1, 1)
    return genesis_name(_charter_of(found[0])) if found else None


class ProofsOnceNamed:
    """The way to the nodes for inclusion proofs: before the charter names this log, nobody believes its notes."""

    def __init__(self, outbox: Outbox, log_key: bytes) -> None:
        self._outbox = outbox
        self._log_key = log_key

    def register(self, kind: str, handler: Handler) -> None:
        """Pass on."""
        self._outbox.register(kind, handler)

    def enqueue(self, conn: Connection, org: str, kind: str, body: dict[str, Any], *, run: str = "") -> None:
        """Pass on, or drop what would be refused: nodes ask again once the charter has changed."""
        charter = charter_in_force(conn)
        if charter is None or charter.log_public_key == self._log_key:
            self._outbox.enqueue(conn, org, kind, body, run=run)

    def enqueue_all(self, conn: Connection, orgs: Iterable[str], kind: str, body: dict[str, Any]) -> None:
        """As `enqueue`, to each of `orgs`."""
        for org in orgs:
            self.enqueue(conn, org, kind, body)


class Governance:
    """Use cases. Methods that take `conn` run inside the caller's transaction and may run again."""

    def __init__(
        self,
        consortium: str,
        log_name: str,
        log_key: bytes,
        sign: Callable[[str, dict[str, Any]], Statement],
        append: Append,
        send: Send,
        clock: Callable[[], str] = instants.now_text,
    ) -> None:
        """`sign(kind, body)` makes statements of the coordinator; `log_key` is its public Ed25519 key, 32 bytes."""
        self._consortium = consortium
        self._log_name = log_name
        self._log_key = log_key
        self._sign = sign
        self._append = append
        self._send = send
        self.ballots = Ballots(charter_in_force, self._enforce, sign, append, send, clock, log_key)
        self._listeners: list[Callable[[Connection], None]] = []

    def on_charter(self, listener: Callable[[Connection], None]) -> None:
        """Call `listener` in the transaction that puts a charter into force, after everybody was sent it."""
        self._listeners.append(listener)

    def in_charge(self, conn: Connection) -> Charter | None:
        """Return the charter in force, for everything but its own change.

        Raises:
            ComityError: `CHARTER_INVALID` if it names another coordinator's log: the members have to decide first.
        """
        charter = charter_in_force(conn)
        if charter is not None and charter.log_public_key != self._log_key:
            raise ComityError(ErrorCode.CHARTER_INVALID, "the charter in force names another coordinator")
        return charter

    def check_sponsor(self, conn: Connection, org: str) -> None:
        """Once there is a charter, only members that may vote invite. Raises `NOT_A_MEMBER`, `SUSPENDED`."""
        charter = charter_in_force(conn)
        if charter is not None:
            charter.check_active(org)

    def draft(self, conn: Connection) -> Charter:
        """Return the genesis draft, later the newest charter that is voted on. Raises `NOT_FOUND` if there is none."""
        if charter_in_force(conn) is None:
            return self._genesis(conn)
        found = self.ballots.newest_open(conn)
        if found is None:
            raise ComityError(ErrorCode.NOT_FOUND, "nothing is to be decided")
        return found[0].charter

    def signed_by(self, conn: Connection, charter: Charter) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return (who signed this draft, whose signature is awaited)."""
        found = self.ballots.newest_open(conn)
        if found is not None:
            return found[1].allowed, found[1].awaited
        signed = tuple(org for org, _ in store.signatures_of(conn, charter.digest))
        return signed, tuple(org for org in charter.organisations if org not in signed)

    def submit(self, conn: Connection, org: str, data: bytes) -> bool:
        """Take the signature of `org` over the genesis draft; True once the charter is in force.

        Raises:
            ComityError: `MALFORMED`, `FORBIDDEN`, `SIGNATURE_INVALID`, `NOT_A_MEMBER`, `NOT_FOUND`; `CONFLICT` if the
                draft is another one by now (fact `digest`); `ILLEGAL_EVENT` for a single founder, and once there is a
                charter: later ones are voted on.
        """
        statement = Statement.from_bytes(data, max_bytes=_SIGNATURE_BYTES_MAX)
        body = fields(statement.body, frozenset({"charter", "bls"}), what="a charter signature")
        final = charter_in_force(conn)
        if final is not None:
            if body["charter"] == final.digest:
                return True  # it came into force before this signature arrived
            raise ComityError(ErrorCode.ILLEGAL_EVENT, "the genesis is signed; later charters are voted on")
        charter = self._genesis(conn)
        model.check_founders(charter)
        keys = charter.member(org).keys
        if statement.issuer != org:
            raise ComityError(ErrorCode.FORBIDDEN, "the statement is not of the organisation that sent it")
        verify_statement(statement, keys.statement, kind=SIGNATURE, consortium=self._consortium)
        if body["charter"] != charter.digest:
            raise ComityError(ErrorCode.CONFLICT, "the draft is another one by now", digest=charter.digest)
        bls = from_base64(body["bls"], what="bls", size_bytes=_BLS_BYTES)
        if not bls_verify(keys.certificate, message_for("charter", charter.digest), bls):
            raise ComityError(ErrorCode.SIGNATURE_INVALID, "the BLS signature does not hold")
        store.add_signature(conn, charter.digest, org, data)
        given = [(signer, Statement.from_bytes(found)) for signer, found in store.signatures_of(conn, charter.digest)]
        if {signer for signer, _ in given} != set(charter.organisations):
            return False
        self._enforce(conn, None, charter, given)
        return True

    def charters(self, conn: Connection, from_version: int) -> Sequence[bytes]:
        """Return final charters from a version on, oldest first, at most `CHARTERS_PAGE`."""
        return store.charters_from(conn, from_version, CHARTERS_PAGE)

    def _genesis(self, conn: Connection) -> Charter:
        members = [
            Member(row.org, row.title, row.owner, row.keys)
            for row in membership_store.all_members(conn)
            if row.revoked_at is None
        ]
        charter = model.genesis_draft(
            members, consortium=self._consortium, log_name=self._log_name, log_key=self._log_key
        )
        if charter is None:
            raise ComityError(ErrorCode.NOT_FOUND, "nothing is to be decided")
        return charter

    def _enforce(
        self, conn: Connection, in_force: Charter | None, charter: Charter, given: Sequence[tuple[str, Statement]]
    ) -> None:
        partial = {org: from_base64(said.body["bls"], what="bls", size_bytes=_BLS_BYTES) for org, said in given}
        certificate: QuorumCertificate = make_certificate(charter.digest, partial)
        if in_force is None:
            verify_genesis(charter, certificate)
        else:
            verify_successor(in_force, charter, certificate)
        statement = self._sign(
            "charter",
            {
                "charter": charter.to_json(),
                "certificate": certificate.to_json(),
                "signatures": [said.to_json() for _, said in given],
            },
        )
        store.add_charter(conn, charter.version, charter.digest, statement.to_bytes())
        concerned = sorted({*charter.organisations, *(in_force.organisations if in_force else ())})
        self._append(conn, statement, concerned)
        for org in concerned:
            self._send(conn, org, FINAL, {"statement": statement.to_json()})
        self.ballots.in_force(conn, in_force, charter)
        for listener in self._listeners:
            listener(conn)
