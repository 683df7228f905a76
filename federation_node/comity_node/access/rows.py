"""The node's authorisation table: every route of its API, and the roles that may use it.

Rules:
1. Default deny: a route that is not here is refused (`comity.wire.authorisation`), and
   `tests/contract/node/test_access_table.py` fails and names it.
2. `docs/access.md` shows this table; it is generated from here and checked.
3. An auditor reads and changes nothing. Who proposes does not thereby administrate, nor the other way round.
"""

from __future__ import annotations

from comity.wire.authorisation import PUBLIC, SIGNED_IN
from comity_node.access.model import ADMIN, AUDITOR, PROPOSER, REVIEWER, ROLES

_ADMIN = frozenset({ADMIN})
_PROPOSER = frozenset({PROPOSER})

ROUTES: dict[tuple[str, str], frozenset[str]] = {
    ("GET", "/v1/live"): PUBLIC,
    ("GET", "/v1/status"): ROLES,
    ("GET", "/openapi.json"): SIGNED_IN,
    # access
    ("GET", "/v1/access/me"): SIGNED_IN,
    ("GET", "/v1/access/login"): PUBLIC,
    ("POST", "/v1/access/tokens"): _ADMIN,
    ("GET", "/v1/access/tokens"): frozenset({ADMIN, AUDITOR}),
    ("POST", "/v1/access/tokens/{token_id}/revoke"): _ADMIN,
    # membership and transport
    ("POST", "/v1/invitations"): _ADMIN,
    ("POST", "/v1/link/redial"): _ADMIN,
    # charter
    ("GET", "/v1/genesis"): ROLES,
    ("POST", "/v1/genesis/sign"): _ADMIN,
    ("GET", "/v1/charter"): ROLES,
    ("GET", "/v1/charter/proposals"): ROLES,
    ("GET", "/v1/charter/proposals/{digest}"): ROLES,
    ("POST", "/v1/charter/proposals"): _ADMIN,
    ("POST", "/v1/charter/votes"): _ADMIN,
    # ledger
    ("GET", "/v1/attestation"): ROLES,
    ("GET", "/v1/ledger"): ROLES,
    ("GET", "/v1/ledger/export"): frozenset({ADMIN, AUDITOR}),
    ("GET", "/v1/ledger/proof/{digest}"): frozenset({ADMIN, AUDITOR}),
    ("POST", "/v1/ledger/incidents/{incident}/acknowledge"): _ADMIN,
    # policy
    ("GET", "/v1/policy"): ROLES,
    ("POST", "/v1/policy/reload"): _ADMIN,
    ("POST", "/v1/policy/consortium"): _ADMIN,
    ("GET", "/v1/policy/decisions"): frozenset({ADMIN, AUDITOR}),
    ("GET", "/v1/policy/decisions/{name}"): frozenset({ADMIN, AUDITOR}),
    # negotiation
    ("POST", "/v1/apps"): _PROPOSER,
    ("POST", "/v1/proposals"): _PROPOSER,
    ("POST", "/v1/intersections"): _PROPOSER,
    ("POST", "/v1/statistics"): _PROPOSER,
    ("GET", "/v1/proposals"): ROLES,
    ("GET", "/v1/proposals/{name}"): ROLES,
    ("POST", "/v1/proposals/{name}/accept"): _PROPOSER,
    ("POST", "/v1/proposals/{name}/revise"): _PROPOSER,
    ("GET", "/v1/agreements"): ROLES,
    ("POST", "/v1/withdrawals"): frozenset({ADMIN, PROPOSER}),
    # reviews
    # Anybody may have been delegated to: the item's own role or a delegation is asked in reviews/service.py.
    ("GET", "/v1/reviews"): SIGNED_IN,
    ("GET", "/v1/reviews/{id}"): SIGNED_IN,
    ("POST", "/v1/reviews/{id}/votes"): SIGNED_IN,
    ("GET", "/v1/delegations"): ROLES,
    ("POST", "/v1/delegations"): frozenset({ADMIN, REVIEWER}),
    ("DELETE", "/v1/delegations/{id}"): frozenset({ADMIN, REVIEWER}),
    # training
    ("GET", "/v1/datasets"): ROLES,
    ("POST", "/v1/datasets"): _ADMIN,
    ("GET", "/v1/retention"): frozenset({ADMIN, AUDITOR}),
    ("POST", "/v1/retention/run"): _ADMIN,
    ("GET", "/v1/runs"): ROLES,
    ("GET", "/v1/runs/{run}"): ROLES,
    ("POST", "/v1/runs/{run}/cancel"): frozenset({ADMIN, PROPOSER}),
    ("GET", "/v1/runs/{run}/events"): ROLES,
    ("GET", "/v1/runs/{run}/result"): frozenset({ADMIN, PROPOSER}),
    ("GET", "/v1/runs/{run}/card"): ROLES,
    ("GET", "/v1/runs/{run}/sums"): ROLES,
    ("GET", "/v1/runs/{run}/sums/{number}"): frozenset({ADMIN, PROPOSER}),
}
