"""Consent to the genesis charter, and keeping up with the charters that came into force.

Rules: the genesis draft is signed only by the digest that a person typed (it says what they compared with the other
founders), and only if it carries this node's own keys and pinned log key. Every later charter is proposed and voted on
(`decisions.py`); `genesis show` and `genesis sign` then mean the newest open proposal.
"""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from typing import Any

import structlog

from comity.v1 import membership_pb2
from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keys import MemberKeys
from comity_crypto.quorum import message_for
from comity_crypto.statements import Statement, sign_statement
from comity_node.context import NodeContext
from comity_node.governance.decisions import CharterDecisions
from comity_node.governance.own_keys import OwnKeys
from comity_node.governance.store import CHARTER_KIND, NOT_AS_TYPED
from comity_node.transport.dial import ask
from comity_node.transport.model import Message
from comity_policies.charter import Adopted, Charter, genesis_name, matches_genesis
from comity_policies.charter_votes import Ballot

CHARTERS_AT_ONCE_MAX = 256
SIGNATURE_KIND = "charter-signature"
log = structlog.get_logger("comity.node.governance")


@dataclass(frozen=True, slots=True)
class Draft:
    """The next charter as it stands."""

    charter: Charter
    signed_by: tuple[str, ...]
    awaited: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what people compare: name, digest, each member's fingerprint, who has signed."""
        return {
            "version": self.charter.version,
            "consortium": self.charter.consortium,
            "digest": self.charter.digest,
            "name": genesis_name(self.charter),
            "members": [
                {"org": each.org, "title": each.title, "owner": each.owner, "fingerprint": each.keys.fingerprint()}
                for each in self.charter.members
            ],
            "signed_by": list(self.signed_by),
            "awaited": list(self.awaited),
        }


class GovernanceService:
    """Drafts, signatures, final charters."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node
        self._lock = asyncio.Lock()
        self.own_keys = OwnKeys(node)
        self.decisions = CharterDecisions(node, self.own_keys)
        node.link.register("charter.final", self._final)
        node.link.on_connected(self.catch_up)

    async def start(self) -> None:
        """Finish a change of keys that a crash interrupted; charters come when the link opens."""
        self.own_keys.switch()

    async def stop(self) -> None:
        """Nothing to end."""

    async def draft(self) -> Draft:
        """Return the genesis draft as the coordinator shows it, not verified; later the newest open proposal.

        Raises:
            ComityError: `NOT_FOUND` if nothing is to be decided.
        """
        current = self._node.charters.current()
        if current is not None:
            return await self._proposed(current)
        request = membership_pb2.GetCharterDraftRequest()
        found = await ask(self._node.dialer.membership().GetCharterDraft, request)
        charter = Charter.from_json(canonical.parse(found.charter))
        return Draft(charter, tuple(found.signed_by), tuple(found.awaited))

    async def sign(self, typed: str) -> bool:
        """Sign the genesis draft whose digest or name is `typed`; True once it is in force at the coordinator.

        Later this is a yes to the open proposal that is called so.

        Raises:
            ComityError: `GENESIS_MISMATCH` if the draft has another digest, `CHARTER_INVALID` if it does not hold,
                `CONFLICT` if this node signed another successor.
        """
        if self._node.charters.current() is not None:
            return bool((await self.decisions.vote(typed))["in_force"])
        charter = (await self.draft()).charter
        if not matches_genesis(charter, typed):
            raise ComityError(
                ErrorCode.GENESIS_MISMATCH, "the draft has another digest; compare again", draft=genesis_name(charter)
            )
        self._check(charter)
        await self._node.journal.run(lambda conn: self._node.charters.sign_once(conn, charter))
        signature = self._node.keys.bls_sign(message_for("charter", charter.digest))
        statement = sign_statement(
            self._node.keys,
            kind=SIGNATURE_KIND,
            consortium=charter.consortium,
            issuer=self._node.settings.org,
            body={"charter": charter.digest, "bls": base64.b64encode(signature).decode()},
        )
        answer = await ask(
            self._node.dialer.membership().SubmitCharterSignature,
            membership_pb2.SubmitCharterSignatureRequest(statement=statement.to_bytes()),
        )
        if answer.final:
            await self.catch_up()
        return answer.final

    def next_keys(self) -> tuple[str, MemberKeys]:
        """Return this organisation and its next public keys, made now unless they are there."""
        return self._node.settings.org, self.own_keys.prepare()

    def adopted(self, size: int, root: str) -> Adopted:
        """Return where the log of the charter in force ended, for a proposal to change the coordinator."""
        return Adopted(self._node.charters.in_force().log_name, size, root)

    async def catch_up(self) -> None:
        """Fetch and verify the final charters that this node has not seen."""
        async with self._lock:
            request = membership_pb2.ListChartersRequest(from_version=self._node.charters.next_version())
            found = await ask(self._node.dialer.membership().ListCharters, request)
            if len(found.statements) > CHARTERS_AT_ONCE_MAX:
                raise ComityError(ErrorCode.TOO_LARGE, "charters", limit=CHARTERS_AT_ONCE_MAX)
            for data in found.statements:
                await self._accept(Statement.from_bytes(data))

    async def _final(self, message: Message) -> None:
        document = message.document()
        statement = Statement.from_json(document.get("statement"))
        charter = statement.body.get("charter")
        version = charter.get("version") if isinstance(charter, dict) else None
        if isinstance(version, int) and version > self._node.charters.next_version():
            await self.catch_up()  # this one comes with those before it
            return
        async with self._lock:
            await self._accept(statement)

    async def entered(self, statement: Statement) -> None:
        """Take a charter that was read in the ledger: nobody keeps one from this node by not sending it."""
        if self._node.charters.knows(statement):
            return
        async with self._lock:
            await self._accept(statement)

    async def _accept(self, statement: Statement) -> None:
        if statement.kind != CHARTER_KIND:
            raise ComityError(ErrorCode.MALFORMED, "not a charter")
        before = self._node.charters.current()
        if await self._node.charters.accept(statement):
            await self._node.journal.run(lambda conn: self._node.ledger.expect(conn, statement))
            charter = self._node.charters.in_force()
            log.info("charter.in_force", version=charter.version, name=genesis_name(charter))
            self.own_keys.switch()
            self.decisions.accepted(charter.digest)
            await self.decisions.in_force()
            if before is not None and before.log_key != charter.log_key:
                self._node.link.redial()  # what was said meanwhile is asked for anew, under the log that counts now

    async def _proposed(self, current: Charter) -> Draft:
        known = await self.decisions.newest_open()
        if known is None:
            raise ComityError(ErrorCode.NOT_FOUND, "nothing is to be decided")
        ballot = Ballot(current, known.proposal, await self.decisions.votes(known.charter))
        return Draft(known.charter, ballot.allowed, ballot.awaited)

    def _check(self, charter: Charter) -> None:
        """What this node would never sign as genesis."""
        settings = self._node.settings
        if charter.consortium != settings.consortium:
            raise ComityError(ErrorCode.CHARTER_INVALID, "a charter of another consortium")
        if charter.member(settings.org).keys != self._node.keys.public:
            raise ComityError(ErrorCode.CHARTER_INVALID, "the draft names other keys for this organisation")
        if charter.version != self._node.charters.next_version():
            raise ComityError(ErrorCode.CHARTER_INVALID, "not a genesis charter")
        if charter.log_public_key != settings.log_key_bytes:
            raise ComityError(ErrorCode.CHARTER_INVALID, "the draft names another log key than enrolment did")
        if settings.genesis is not None and not matches_genesis(charter, settings.genesis):
            raise ComityError(ErrorCode.GENESIS_MISMATCH, NOT_AS_TYPED, draft=genesis_name(charter))


def build(node: NodeContext) -> GovernanceService:
    """Return the capability."""
    service = GovernanceService(node)
    node.services.add(service)
    return service
