"""Founders, their charter, and a journal: what the node's unit tests start from."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from comity_crypto.keys import OrgKeys
from comity_crypto.quorum import make_certificate, message_for
from comity_crypto.statements import Statement, sign_statement
from comity_node.governance.store import CharterStore
from comity_node.journal import Journal
from comity_node.ledger import store as _ledger_tables  # noqa: F401 - defines its tables
from comity_node.settings import NodeSettings
from comity_policies.charter import Charter, Member, QuorumRule
from comity_policies.terms import Terms

FOUNDERS = ("hospital-a", "hospital-b", "hospital-c")


@dataclass(frozen=True)
class Consortium:
    """Private keys of everybody, for tests."""

    log: OrgKeys
    keys: dict[str, OrgKeys]

    def charter(self, version: int = 1, previous: str | None = None, orgs: tuple[str, ...] = FOUNDERS) -> Charter:
        members = tuple(Member(org, org, org, self.keys[org].public) for org in orgs)
        return Charter(
            version=version,
            consortium="demo",
            previous=previous,
            members=members,
            log_name="coordinator.example/demo",
            log_key=base64.b64encode(self.log.public.statement).decode(),
            quorum={"admit-member": QuorumRule("fraction", 2, 3)},
            max_checkpoint_age_s=600,
            defaults=Terms(),
        )

    def final(self, charter: Charter, signers: tuple[str, ...] = FOUNDERS, log: OrgKeys | None = None) -> Statement:
        message = message_for("charter", charter.digest)
        certificate = make_certificate(charter.digest, {org: self.keys[org].bls_sign(message) for org in signers})
        body = {"charter": charter.to_json(), "certificate": certificate.to_json(), "signatures": []}
        return sign_statement(log or self.log, kind="charter", consortium="demo", issuer="coordinator", body=body)


@pytest.fixture(scope="session")
def consortium() -> Consortium:
    return Consortium(OrgKeys.generate(), {org: OrgKeys.generate() for org in (*FOUNDERS, "hospital-d")})


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.open(tmp_path / "journal.db")
    opened.create_all()
    yield opened
    opened.close()


@pytest.fixture
def make_settings(tmp_path: Path, consortium: Consortium) -> Callable[[str | None], NodeSettings]:
    def make(genesis: str | None = None) -> NodeSettings:
        return NodeSettings(
            home=tmp_path,
            org="hospital-a",
            consortium="demo",
            title="A",
            owner="A",
            coordinator="127.0.0.1:1",
            log_key=base64.b64encode(consortium.log.public.statement).decode(),
            genesis=genesis,
        )

    return make


@pytest.fixture
def charters(make_settings: Callable[[str | None], NodeSettings], journal: Journal) -> CharterStore:
    return CharterStore(make_settings(None), journal)
