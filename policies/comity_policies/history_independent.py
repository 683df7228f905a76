"""Obligation 9 of `history.py`: what rests on BLS12-381 in an export, checked once more with py_ecc only.

That is: the possession of every member's key, every quorum certificate, every member's yes to a charter, and every
proof about a cohort. A key or signature that stands in several entries is checked once. About 0.3 s each.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto import quorum
from comity_crypto.quorum import QuorumCertificate, message_for
from comity_crypto.statements import Statement
from comity_policies.charter import Charter
from comity_policies.charter_votes import VOTE, read_vote
from comity_policies.history_runs import RunBook


@dataclass(slots=True)
class SecondLook:
    """What was checked so far. Every method returns how many checks it made, and raises what they raise."""

    seen: set[tuple[bytes, bytes, bytes]] = field(default_factory=set)

    def charter(self, charter: Charter, certificate: QuorumCertificate, voters: Charter, carried: object) -> int:
        """Check a charter: its certificate, its members' keys, the votes that it carries."""
        made = self.certificate(certificate, "charter", voters)
        for member in charter.members:
            key, proof = member.keys.certificate, member.keys.possession
            if self._new(key, b"possession", proof):
                if not quorum.independent_possession(key, proof):
                    detail = f"possession of the key of {member.org} is not proven (py_ecc)"
                    raise ComityError(ErrorCode.POSSESSION_UNPROVEN, detail)
                made += 1
        if isinstance(carried, list):
            made += sum(self.vote(Statement.from_json(each), voters) for each in carried)
        return made

    def certificate(self, certificate: QuorumCertificate, domain: str, voters: Charter) -> int:
        """Check one certificate."""
        quorum.independent_verify(certificate, message_for(domain, certificate.digest), voters.certificate_keys)
        return 1

    def vote(self, statement: Statement, charter: Charter) -> int:
        """Check a member's yes to a charter, if the statement is one."""
        if statement.kind != VOTE:
            return 0
        vote = read_vote(statement, charter)
        if not vote.allow:
            return 0
        key, message = charter.certificate_keys[statement.issuer], message_for("charter", vote.charter)
        if not self._new(key, message, vote.signature):
            return 0
        if not quorum.independent_signature(key, message, vote.signature):
            raise ComityError(ErrorCode.QUORUM_MISSING, f"the yes of {statement.issuer} does not hold (py_ecc)")
        return 1

    def receipt(self, statement: Statement, runs: RunBook) -> int:
        """Check the proof in a receipt, if it carries one."""
        return runs.verify_independently(statement) if statement.kind == "receipt" else 0

    def _new(self, *parts: bytes) -> bool:
        key, message, signature = parts
        if (key, message, signature) in self.seen:
            return False
        self.seen.add((key, message, signature))
        return True
