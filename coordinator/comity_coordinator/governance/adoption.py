"""Starting a successor from an export: the log goes on where the former coordinator's ended, under a new key.

Rules (negotiation.md section 6):
1. nothing is taken that does not verify from the genesis name on, and the new log has the export's very root;
2. until a charter that the members have certified names the new log, this coordinator takes their votes on that and
   nothing else (`Governance.in_charge`);
3. what only the former coordinator knew is gone with it: runs under way, payloads, certificates of the transport.
   Members enrol anew with the keys that the charter names, by tokens that are made here; their nodes submit again what
   is being negotiated;
4. an agreement that became final and has not run to its end is told to its parties again: not all may have heard it.
"""

from __future__ import annotations

import base64
import functools
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from comity.wire.errors import ComityError, ErrorCode
from comity.wire.ids import new_id
from comity_coordinator import setup
from comity_coordinator.governance import store
from comity_coordinator.governance.service import charter_in_force
from comity_coordinator.ledger import store as ledger_store
from comity_coordinator.ledger.service import Ledger
from comity_coordinator.settings import CoordinatorSettings
from comity_coordinator.training import store as training_store
from comity_coordinator.transport import store as transport_store
from comity_coordinator.transport.model import from_coordinator
from comity_crypto.notes import sign_note
from comity_crypto.statements import Statement
from comity_crypto.tokens import JoinToken
from comity_policies.charter import Charter
from comity_policies.charter_votes import ENDED, PROPOSAL, VOTE, CharterEnded, CharterProposal, CharterVote, Outcome
from comity_policies.deletions import DELETION, Deletion
from comity_policies.documents import Agreement, Receipt
from comity_policies.history import Report, verify_export

PAGE = 256
HOLDER = "adoption"
FINALS_MAX = 1_000
OFFER = "coordinator-change.json"


@dataclass(frozen=True, slots=True, repr=False)
class Adoption:
    """What came of it: what members have to vote on, and a token for each that is to connect."""

    report: Report
    log_name: str
    log_key: str
    tokens: dict[str, JoinToken]

    def offer(self) -> dict[str, Any]:
        """Return what `comity charter propose --coordinator FILE` reads: public, and to be compared by the members."""
        return {
            "log_name": self.log_name,
            "log_key": self.log_key,
            "size": self.report.size,
            "root": self.report.root,
        }


def adopt(settings: CoordinatorSettings, export: Path, genesis: str, orgs: tuple[str, ...], valid_s: int) -> Adoption:
    """Make the folder of a successor from a verified export.

    Args:
        settings: of the new coordinator; its consortium must be the export's.
        export: a ledger export, as recent as the members have.
        genesis: the consortium's name, obtained outside any coordinator.
        orgs: members that get a token.
        valid_s: seconds until the tokens expire.

    Raises:
        ComityError: `LEDGER_INVALID` if the export does not verify; `CONFLICT` if there is a coordinator in that folder
            already, or the export is of another consortium; `NOT_A_MEMBER` for a stranger among `orgs`.
    """
    report = verify_export(export, genesis)
    if report.consortium != settings.consortium:
        raise ComityError(ErrorCode.CONFLICT, "the export is of another consortium", consortium=report.consortium)
    fresh = not settings.home.exists()
    setup.create(settings)
    try:
        return _fill(settings, export, report, orgs, valid_s)
    except BaseException:  # also Ctrl-C leaves no half a coordinator
        if fresh:  # half a coordinator is none; a folder that was there before is not ours to remove
            shutil.rmtree(settings.home, ignore_errors=True)
        raise


def _fill(settings: CoordinatorSettings, export: Path, report: Report, orgs: tuple[str, ...], valid_s: int) -> Adoption:
    keys = setup.log_keys(settings)
    with setup.database(settings) as database:
        ledger = Ledger(
            settings.consortium, settings.log_name, lambda text: sign_note(text, settings.log_name, keys), Silence()
        )
        finals: dict[str, Statement] = {}
        for page in pages(export):
            database.transact(functools.partial(take, ledger=ledger, page=page))
            _note_finals(finals, page)
            while database.transact(functools.partial(ledger.integrate, holder=HOLDER)):
                pass  # bounded by the page
        database.transact(functools.partial(ledger_store.release_lease, holder=HOLDER))
        size, note = database.transact(ledger.head)
        if size != report.size or base64.b64encode(bytes.fromhex(report.root)).decode() not in note:
            raise ComityError(ErrorCode.LEDGER_INVALID, "the entries do not lead to the export's root", size=size)
        database.transact(functools.partial(_tell_finals, finals=finals))
        tokens = database.transact(functools.partial(_tokens, settings=settings, orgs=orgs, valid_s=valid_s))
    log_key = base64.b64encode(keys.public.statement).decode()
    return Adoption(report, settings.log_name, log_key, tokens)


def pages(export: Path) -> Iterator[list[Statement]]:
    """Yield the statements of a verified export in order, `PAGE` at a time."""
    with export.open("rb") as lines:
        next(lines)
        page: list[Statement] = []
        for line in lines:
            page.append(Statement.from_bytes(base64.b64decode(json.loads(line)["statement"])))
            if len(page) == PAGE:
                yield page
                page = []
        if page:
            yield page


def take(conn: Connection, ledger: Ledger, page: list[Statement]) -> None:
    """Append verified statements, and note in the tables what they say."""
    for said in page:
        ledger.append(conn, said)
        if said.kind == "charter":
            charter = Charter.from_json(said.body["charter"])
            store.add_charter(conn, charter.version, charter.digest, said.to_bytes())
            _overtake(conn)
        elif said.kind == PROPOSAL:
            proposal = CharterProposal.from_json(said.body)
            digest, at = proposal.charter.digest, said.issued_at
            state, data = Outcome.OPEN, said.to_bytes()
            row = store.ProposalRow(said.digest, digest, said.issuer, state, proposal.deadline, at, data)
            store.add_proposal(conn, row)
        elif said.kind == VOTE:
            vote = CharterVote.from_json(said.body)
            store.add_vote(conn, vote.charter, said.issuer, vote.allow, said.to_bytes())
        elif said.kind == ENDED:
            ended = CharterEnded.from_json(said.body)
            store.set_state(conn, ended.proposal, ended.state)
        elif said.kind == "receipt":
            receipt = Receipt.from_json(said.body)
            executed = receipt.order if receipt.outcome == "result" else said.digest
            training_store.put_receipt(conn, said.issuer, receipt.journal_seq, receipt.run, executed, said.digest)
        elif said.kind == DELETION:
            training_store.put_deletion(conn, Deletion.from_json(said.body).run, said.issuer, said.digest)


def _note_finals(finals: dict[str, Statement], page: list[Statement]) -> None:
    """Keep agreements that are final and neither withdrawn nor used, by digest, the newest `FINALS_MAX`."""
    for said in page:
        if said.kind == "agreement":
            finals[Agreement.from_json(said.body["agreement"]).digest] = said
        elif said.kind in ("withdrawal", "run-closed"):
            finals.pop(str(said.body.get("agreement")), None)
    for digest in list(finals)[:-FINALS_MAX]:
        del finals[digest]


def _tell_finals(conn: Connection, finals: dict[str, Statement]) -> None:
    for said in finals.values():
        first = from_coordinator(new_id("msg"), "agreement.final", {"statement": said.to_json()})
        parties = Agreement.from_json(said.body["agreement"]).parties
        transport_store.append_all(conn, {org: replace(first, id=new_id("msg")) for org in parties})


def _overtake(conn: Connection) -> None:
    """Close what the charter that just came into force was voted on as; ends of the others follow in the log."""
    charter = charter_in_force(conn)
    for row in store.in_state(conn, Outcome.OPEN, PAGE):
        if charter is not None and row.charter_digest == charter.digest:
            store.set_state(conn, row.statement_digest, Outcome.CARRIED)


def _tokens(
    conn: Connection, settings: CoordinatorSettings, orgs: tuple[str, ...], valid_s: int
) -> dict[str, JoinToken]:
    charter, membership = charter_in_force(conn), setup.membership(settings)
    assert charter is not None, "a verified export begins with a charter"
    for org in orgs:
        charter.member(org)
    return {org: membership.own_token(conn, org, valid_s) for org in orgs}


class Silence:
    """Sends nothing: nobody is connected, and the proofs went out long ago."""

    def register(self, kind: str, handler: object) -> None:
        """Refuse."""
        raise AssertionError(f"an adoption handles no {kind}: {handler!r}")

    def enqueue(self, conn: object, org: str, kind: str, body: dict[str, object], *, run: str = "") -> None:
        """Drop it."""

    def enqueue_all(self, conn: object, orgs: object, kind: str, body: dict[str, object]) -> None:
        """Drop them."""
