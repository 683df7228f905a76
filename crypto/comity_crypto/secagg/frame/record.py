"""Who said what in one session: the part of a transcript that rounds and ceremonies share.

1. One message of a kind per party: an identical one is ignored, a different one is refused (`CONFLICT`) and the first
   stands. Early messages are kept; order of arrival does not matter.
2. Only the session's parties speak, each kind only by who may say it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Generic, Protocol, Self, TypeVar

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.body import Body
from comity_crypto.secagg.frame.events import Failed
from comity_crypto.secagg.frame.messages import Abort, InSession


class Call(Protocol):
    """What opens a session: a lead's offer of a round, or its plan of a ceremony."""

    @property
    def digest(self) -> str:
        """The session's name."""
        ...

    @property
    def lead(self) -> str:
        """Who called."""
        ...

    @property
    def parties(self) -> tuple[str, ...]:
        """Who takes part, sorted."""
        ...


def gave_up(org: str, said: Abort) -> ComityError:
    """Return the error of a session that `org` gave up, with the name of whom it blames."""
    blamed = {"missing": said.blame} if said.blame else {}
    return ComityError(ErrorCode(said.code), "a party gave up", org=org, **blamed)


C = TypeVar("C", bound=Call)
B = TypeVar("B", bound=Body)


@dataclass(frozen=True)
class Record(Generic[C]):
    """Immutable record of what was said in the session that `offer` opened."""

    PARTY_KINDS: ClassVar[tuple[type[InSession], ...]] = (Abort,)
    LEAD_KINDS: ClassVar[tuple[type[InSession], ...]] = (Abort,)
    offer: C
    received: Mapping[tuple[str, str], Body] = field(default_factory=dict, repr=False)

    def absorb(self, issuer: str, message: Body) -> Self:
        """Return the record with a party's message.

        Raises:
            ComityError: `FORBIDDEN` (not a party, or not its to say), `ROSTER_MISMATCH` (another session), `CONFLICT`
                (the party said something else before), `MALFORMED`.
        """
        party, lead = issuer in self.offer.parties, issuer == self.offer.lead
        allowed = (self.PARTY_KINDS if party else ()) + (self.LEAD_KINDS if lead else ())
        if not isinstance(message, allowed):
            raise ComityError(ErrorCode.FORBIDDEN, "not a party of this session, or not its to say")
        if message.session != self.offer.digest:
            return self._of_another_session(issuer, message)
        self._judge(message)
        before = self.received.get((message.KIND, issuer))
        if before is None:
            return replace(self, received={**self.received, (message.KIND, issuer): message})
        if before != message:
            raise ComityError(ErrorCode.CONFLICT, "the party has said something else before", kind=message.KIND)
        return self

    def get(self, kind: type[B], org: str) -> B | None:
        """Return what `org` said of this kind."""
        found = self.received.get((kind.KIND, org))
        return found if isinstance(found, kind) else None

    def said(self, kind: type[B], org: str) -> B:
        """Return what `org` said of this kind. Raises `INTERNAL`: only for what was judged to be there."""
        found = self.get(kind, org)
        if found is None:
            raise ComityError(ErrorCode.INTERNAL, "a message is missing that was there", org=org, kind=kind.KIND)
        return found

    @property
    def speakers(self) -> tuple[str, ...]:
        """Whose word counts, sorted."""
        return self.offer.parties

    def all_of(self, kind: type[B]) -> dict[str, B]:
        """Return what the speakers said of this kind so far, by organisation."""
        return {org: found for org in self.speakers if (found := self.get(kind, org)) is not None}

    def missing(self, kind: type[Body]) -> tuple[str, ...]:
        """Return which speakers have not said this."""
        return tuple(org for org in self.speakers if self.get(kind, org) is None)

    def aborts(self) -> list[tuple[str, Abort]]:
        """Return who gave the session up, the lead among them even where it is no party."""
        orgs = sorted({*self.speakers, self.offer.lead})
        return [(org, found) for org in orgs if (found := self.get(Abort, org)) is not None]

    def over(self) -> Failed | None:
        """Return why the session is over by a party's word. Raises why it is over by what all words show together."""
        for org, said in self.aborts():
            error = gave_up(org, said)
            missing = said.blame if said.blame in self.offer.parties else org
            return Failed(error, (missing,))
        return None

    def _of_another_session(self, issuer: str, message: InSession) -> Self:
        """Return the record with a message that names another session. Raises `ROSTER_MISMATCH`."""
        raise ComityError(ErrorCode.ROSTER_MISMATCH, "the message belongs to another session")

    def _judge(self, message: InSession) -> None:
        """Refuse a message of this session by what it holds."""
