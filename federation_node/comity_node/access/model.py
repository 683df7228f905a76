"""People of this organisation and their roles: pure, no clock and no I/O.

Rules:
1. The organisation decides who may what; the coordinator neither knows nor judges its people.
2. Whoever holds `api.token` is the organisation's own Unix user: `local`, with every role.
3. No role follows from another one: an admin does not vote as a reviewer unless the policy says so too.
"""

from __future__ import annotations

from comity.wire.authorisation import Principal

__all__ = ["ADMIN", "AUDITOR", "LOCAL", "LOCAL_USER", "PROPOSER", "REVIEWER", "ROLES", "Principal"]

ADMIN = "admin"
PROPOSER = "proposer"
REVIEWER = "reviewer"
AUDITOR = "auditor"
ROLES = frozenset({ADMIN, PROPOSER, REVIEWER, AUDITOR})

LOCAL_USER = "local"
LOCAL = Principal(LOCAL_USER, ROLES, "local")
