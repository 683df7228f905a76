"""The coordinator's authorisation tables: every REST route and every gRPC method, and who may use it.

Rules:
1. Default deny: what is not here is refused, and `tests/contract/coordinator/test_authorisation_tables.py` fails and
   names it. `docs/access.md` shows these tables; it is generated from here and checked.
2. REST is the operator's. An operator reads states and closes transport; no row gives a member's right, because
   whatever needs an organisation's key is said over gRPC with that organisation's certificate.
3. A gRPC method belongs to one kind of identity: a join certificate enrols, a replica of this coordinator calls the
   service of replicas and nothing else, an organisation's certificate does everything else.
"""

from __future__ import annotations

from comity.wire.authorisation import PUBLIC, Principal

JOIN = "join"
ORG = "org"
REPLICA = "replica"
OPERATOR = "operator"
OPERATING = Principal(OPERATOR, frozenset({OPERATOR}), "local")

_OPERATOR = frozenset({OPERATOR})

ROUTES: dict[tuple[str, str], frozenset[str]] = {
    ("GET", "/v1/live"): PUBLIC,
    ("GET", "/v1/ready"): PUBLIC,
    ("GET", "/v1/status"): _OPERATOR,
    ("GET", "/openapi.json"): _OPERATOR,
    ("GET", "/v1/events"): _OPERATOR,
    ("GET", "/v1/members"): _OPERATOR,
    ("POST", "/v1/members/{org}/revoke"): _OPERATOR,
    ("GET", "/v1/negotiations"): _OPERATOR,
    ("GET", "/v1/negotiations/{proposal_id}"): _OPERATOR,
    ("GET", "/v1/runs"): _OPERATOR,
    ("GET", "/v1/runs/{run}"): _OPERATOR,
    ("GET", "/v1/ledger/checkpoint"): _OPERATOR,
    ("GET", "/v1/ledger/entries"): _OPERATOR,
    ("GET", "/v1/ledger/proof/{digest}"): _OPERATOR,
    ("GET", "/v1/ledger/consistency"): _OPERATOR,
    ("GET", "/v1/ledger/export"): _OPERATOR,
}

METHODS: dict[str, str] = {
    "/comity.v1.EnrolmentService/Enrol": JOIN,
    "/comity.v1.ExchangeService/Connect": ORG,
    "/comity.v1.PayloadService/PutPayload": ORG,
    "/comity.v1.PayloadService/StatPayload": ORG,
    "/comity.v1.PayloadService/GetPayload": ORG,
    "/comity.v1.MembershipService/IssueInvitation": ORG,
    "/comity.v1.MembershipService/RotateCertificate": ORG,
    "/comity.v1.MembershipService/GetCharterDraft": ORG,
    "/comity.v1.MembershipService/SubmitCharterSignature": ORG,
    "/comity.v1.MembershipService/ListCharters": ORG,
    "/comity.v1.LedgerReadService/GetCheckpoint": ORG,
    "/comity.v1.LedgerReadService/ListEntries": ORG,
    "/comity.v1.LedgerReadService/GetInclusionProof": ORG,
    "/comity.v1.LedgerReadService/GetConsistencyProof": ORG,
    "/comity.v1.LedgerReadService/GetStanding": ORG,
    "/comity.v1.LedgerWitnessService/AddCosignature": ORG,
    "/comity.v1.ReplicaService/Carry": REPLICA,
    "/comity.v1.ReplicaService/FetchPayload": REPLICA,
}
