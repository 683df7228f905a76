"""What policies see of the charter in force: facts that the node has verified itself, never a claim of whoever asks.

Rules:
1. roles are those of the organisations that a question is about, each with an entry, even if it holds none;
2. of the published apps only those are there that the question is about: an app that is not there is not published.

Source: negotiation.md sections 4 and 6.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from comity_policies.charter_document import Charter
from comity_policies.documents import Proposal
from comity_policies.steps import Step, TrainStep

# How a policy names the members together, in `app_signers`.
PUBLISHER = "consortium"


def facts_of(charter: Charter, orgs: Iterable[str], digests: Collection[str] = ()) -> dict[str, Any]:
    """Return version, roles of `orgs`, published apps among `digests`, and roots of attestation."""
    return {
        "version": charter.version,
        "roles": {org: roles_of(charter, org) for org in sorted(set(orgs))},
        "published": [agent.to_json() for agent in charter.agents if agent.digest in digests],
        "trust_roots": [root.to_json() for root in charter.trust_roots],
    }


def facts_for(charter: Charter, proposal: Proposal) -> dict[str, Any]:
    """Return the facts for a proposal: about its proposer, whom it asks, and its apps."""
    return facts_of(charter, (proposal.proposer, *proposal.asked), app_digests(proposal.steps))


def app_digests(steps: Iterable[Step]) -> set[str]:
    """Return the digests of all apps that steps run."""
    return {step.app.digest for step in steps if isinstance(step, TrainStep)}


def roles_of(charter: Charter, org: str) -> list[str]:
    """Return the charter's roles that an organisation holds, sorted."""
    return [role for role, named in charter.roles.items() if org in named]


def published_by(charter: Charter, digest: str) -> list[str]:
    """Return who vouches for an app: `consortium`, if the members have published this very digest in their charter."""
    return [PUBLISHER] if any(agent.digest == digest for agent in charter.agents) else []
