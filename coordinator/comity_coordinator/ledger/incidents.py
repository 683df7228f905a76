"""What members saw of this very ledger: signed incidents are entered like everything else, for all to read.

Rules: the form is checked, the accusation is not judged. A coordinator that keeps one out withholds an entry, which its
issuer sees; whoever asks another coordinator of the consortium sees it there. Its proof goes to every member as soon as
it is entered, so that each reads it then and not at its next look.
"""

from __future__ import annotations

from sqlalchemy import Connection

from comity_coordinator import inbound
from comity_coordinator.inbound import CharterOf, Outbox
from comity_coordinator.ledger.service import Ledger
from comity_coordinator.transport.model import Message
from comity_policies.incidents import INCIDENT, Incident

INCIDENT_BYTES_MAX = 128 << 10


class Incidents:
    """Takes incidents off the hub."""

    def __init__(self, charter_of: CharterOf, ledger: Ledger) -> None:
        self._charter_of = charter_of
        self._ledger = ledger

    def register(self, outbox: Outbox) -> None:
        """Handle what members report."""
        outbox.register(INCIDENT, self.report)

    def report(self, conn: Connection, org: str, message: Message) -> None:
        """Enter an incident of a member. Raises `MALFORMED`, and what `inbound.statement` raises."""
        charter = inbound.charter(conn, self._charter_of)
        said = inbound.statement(charter, org, message, INCIDENT, INCIDENT_BYTES_MAX)
        Incident.from_json(said.body)
        self._ledger.append(conn, said, [each.org for each in charter.members])
