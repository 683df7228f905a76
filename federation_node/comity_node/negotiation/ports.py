"""What negotiation needs of the people of this organisation: somebody to ask, and their verdict.

`reviews/service.py` fits; `service.py` finds it among the node's services. The other way round, reviews and the policy
use two calls of `NegotiationService`:

* `async reconsider(proposal_digest)`: the policy is asked again about a proposal that waits for a person;
* `async answer_by_person(proposal_digest, allow, reason, *, document="")`: a person's word becomes the answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import Connection

if TYPE_CHECKING:
    from comity_node.reviews.model import ReviewAsk
    from comity_policies.decisions import ReviewNeed

# The stages of `ReviewAsk` that negotiation asks at: subjects are a proposal's digest and an agreement's.
STAGE_PROPOSAL, STAGE_AGREEMENT = "proposal", "agreement"


class Verdict(Protocol):
    """How people decided on one item; no decision before the item's end is a denial."""

    @property
    def allowed(self) -> bool:
        """Whether as many people approved as had to."""
        ...

    @property
    def reason(self) -> str:
        """One sentence for the other organisations: of the denial, else of the last approval."""
        ...

    @property
    def document(self) -> str:
        """Digest of the document that was shown and decided on."""
        ...


Decided = Callable[[str, Verdict], Awaitable[None]]


class Reviews(Protocol):
    """The people of this organisation."""

    @property
    def need(self) -> Callable[[], ReviewNeed]:
        """Who has to look where a term alone says that somebody has to."""
        ...

    def ask(self, conn: Connection, item: ReviewAsk) -> None:
        """Put an item before people, in the transaction of `conn`; the same item again is harmless.

        Raises:
            ComityError: `BUSY` if too many items are open.
        """
        ...

    def verdict(self, conn: Connection, stage: str, subject: str) -> Verdict | None:
        """Return the verdict on the newest item of `subject`, None while there is none."""
        ...

    def asked(self, conn: Connection, stage: str, subject: str) -> ReviewNeed | None:
        """Return who had to look at the newest item of `subject`, None if people were never asked."""
        ...

    def obsolete(self, conn: Connection, stage: str, subject: str, why: str) -> None:
        """Nobody needs to decide any more: open items of `subject` end; none is harmless."""
        ...

    def end_of_proposal(self, conn: Connection, proposal: str, why: str) -> None:
        """A proposal, by digest, ended without an agreement: nothing of it needs to be decided any more."""
        ...

    def note_asker(self, conn: Connection, proposal: str, user: str) -> None:
        """Record which of our users made a proposal, by its digest: this user does not decide on it."""
        ...

    def on_decided(self, stage: str, callback: Decided) -> None:
        """Await `callback(subject, verdict)` after the verdict is on disk; it may come twice."""
        ...
