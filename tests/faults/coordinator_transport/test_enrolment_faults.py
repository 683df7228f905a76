"""Joining over a real port: tokens used once, altered, expired, stolen; what a join certificate may do; charters."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import grpc
import pytest
from sqlalchemy import update

from comity.v1 import (
    enrolment_pb2,
    enrolment_pb2_grpc,
    exchange_pb2_grpc,
    membership_pb2,
    membership_pb2_grpc,
    payload_pb2,
    payload_pb2_grpc,
)
from comity.wire import canonical, instants
from comity.wire.errors import ComityError
from comity_coordinator.membership import store
from comity_coordinator.membership.service import Enrolment
from comity_crypto import x509
from comity_crypto.keys import OrgKeys
from comity_crypto.quorum import QuorumCertificate, message_for
from comity_crypto.statements import Statement, sign_statement, verify_statement
from comity_crypto.tokens import JoinToken, enrolment_message, invitation_body
from comity_policies.charter import Charter, Member, genesis_name, verify_genesis, verify_successor
from comity_policies.charter_votes import CharterProposal, CharterVote


def _wire(request: Enrolment) -> enrolment_pb2.EnrolRequest:
    return enrolment_pb2.EnrolRequest(
        org=request.org,
        invitation=request.invitation,
        csr_pem=request.csr_pem,
        member_keys=request.member_keys,
        binding_signature=request.binding_signature,
        title=request.title,
        owner=request.owner,
    )


async def _enrol(rig: Any, token: JoinToken, request: Enrolment) -> enrolment_pb2.EnrolResponse:
    channel = rig.channel(token.join_key_pem.encode(), token.join_certificate_pem.encode())
    return await enrolment_pb2_grpc.EnrolmentServiceStub(channel).Enrol(_wire(request), timeout=5)


async def _refused(rig: Any, error_of: Any, token: JoinToken, request: Enrolment) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _enrol(rig, token, request)
    return error_of(caught.value)


@pytest.fixture
def keys() -> OrgKeys:
    return OrgKeys.generate()


async def test_token_enrols_once_and_the_same_request_again(rig: Any, error_of: Any, keys: OrgKeys) -> None:
    token = JoinToken.parse((await rig.token("alpha")).to_text())
    _, csr_pem = x509.make_csr("alpha")
    request = rig.request(token, keys, csr_pem)
    response = await _enrol(rig, token, request)
    assert x509.spiffe_of(response.certificate_pem) == "spiffe://demo/org/alpha"
    assert response.authority_pem == rig.authority.certificate_pem
    assert response.log_key == rig.keys.public.statement
    # The answer was lost: the same request gets the same answer. Another request does not.
    assert (await _enrol(rig, token, request)).certificate_pem == response.certificate_pem
    _, other_csr = x509.make_csr("alpha")
    assert await _refused(rig, error_of, token, rig.request(token, keys, other_csr)) == "TOKEN_USED"
    assert await _refused(rig, error_of, token, rig.request(token, OrgKeys.generate(), csr_pem)) == "TOKEN_USED"


async def test_join_certificate_may_only_enrol(rig: Any, error_of: Any) -> None:
    token = await rig.token("alpha")
    channel = rig.channel(token.join_key_pem.encode(), token.join_certificate_pem.encode())
    calls = [
        payload_pb2_grpc.PayloadServiceStub(channel).StatPayload(payload_pb2.StatPayloadRequest(digest="0" * 64)),
        membership_pb2_grpc.MembershipServiceStub(channel).GetCharterDraft(membership_pb2.GetCharterDraftRequest()),
        membership_pb2_grpc.MembershipServiceStub(channel).IssueInvitation(
            membership_pb2.IssueInvitationRequest(org="evil", valid_s=600)
        ),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert error_of(caught.value) == "FORBIDDEN"
    stream = exchange_pb2_grpc.ExchangeServiceStub(channel).Connect()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert error_of(caught.value) == "FORBIDDEN"


async def test_member_certificate_may_not_enrol(rig: Any, error_of: Any, keys: OrgKeys) -> None:
    alpha, token = await rig.enrol("alpha"), await rig.token("beta")
    _, csr_pem = x509.make_csr("beta")
    channel = alpha.open_channel()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await enrolment_pb2_grpc.EnrolmentServiceStub(channel).Enrol(_wire(rig.request(token, keys, csr_pem)))
    assert error_of(caught.value) == "FORBIDDEN"
    await channel.close()


async def test_expired_token(rig: Any, error_of: Any, keys: OrgKeys) -> None:
    token = await rig.token("alpha")
    with pytest.raises(ComityError, match="TOKEN_EXPIRED"):
        token.check_expiry(instants.now() + timedelta(seconds=601))
    token.check_expiry(instants.now())
    past = instants.to_text(instants.now() - timedelta(seconds=1))
    await rig.database.run(lambda conn: conn.execute(update(store.tokens).values(expires_at=past)) and None)
    _, csr_pem = x509.make_csr("alpha")
    assert await _refused(rig, error_of, token, rig.request(token, keys, csr_pem)) == "TOKEN_EXPIRED"


async def test_altered_token_text_is_refused(rig: Any) -> None:
    text = (await rig.token("alpha")).to_text()
    assert JoinToken.parse(f"  {text}\n").to_text() == text
    step = max(1, len(text) // 120)
    for position in range(0, len(text), step):
        letter = "A" if text[position] != "A" else "B"
        with pytest.raises(ComityError, match="TOKEN_INVALID"):
            JoinToken.parse(text[:position] + letter + text[position + 1 :])
    for other in ("", text[:-1], text + "A", "x" * 40_000, "comity-join-1." + "é"):
        with pytest.raises(ComityError, match="TOKEN_INVALID"):
            JoinToken.parse(other)
    assert "PRIVATE" not in repr(JoinToken.parse(text))


async def test_tokens_of_others_and_for_others(rig: Any, error_of: Any, keys: OrgKeys) -> None:
    alpha, beta = await rig.token("alpha"), await rig.token("beta")
    _, csr_pem = x509.make_csr("alpha")
    good = rig.request(alpha, keys, csr_pem)
    # Another organisation's name under this token; this token's request over another token's certificate.
    assert await _refused(rig, error_of, alpha, rig.request(alpha, keys, csr_pem, org="beta")) == "TOKEN_INVALID"
    assert await _refused(rig, error_of, beta, good) == "TOKEN_INVALID"
    # Another token's invitation; an invitation that nobody signed; one signed by the newcomer itself.
    swapped = rig.request(alpha, keys, csr_pem, invitation=beta.invitation.to_bytes())
    assert await _refused(rig, error_of, alpha, swapped) == "TOKEN_INVALID"
    forged = sign_statement(
        keys, kind="invitation", consortium="demo", issuer="coordinator", body=alpha.invitation.body
    )
    assert (
        await _refused(rig, error_of, alpha, rig.request(alpha, keys, csr_pem, invitation=forged.to_bytes()))
        == "SIGNATURE_INVALID"
    )
    # A join certificate that the authority issued but never registered.
    key_pem, certificate_pem = x509.issue_join(
        rig.authority.key_pem, rig.authority.certificate_pem, "demo", alpha.token_id, 600
    )
    channel = rig.channel(key_pem, certificate_pem)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await enrolment_pb2_grpc.EnrolmentServiceStub(channel).Enrol(_wire(good), timeout=5)
    assert error_of(caught.value) == "TOKEN_INVALID"
    assert (await _enrol(rig, alpha, good)).certificate_pem


async def test_keys_must_be_proven_and_the_newcomers_own(rig: Any, error_of: Any, keys: OrgKeys) -> None:
    first = await rig.enrol("alpha")
    token = await rig.token("beta")
    _, csr_pem = x509.make_csr("beta")
    document = keys.public.to_json()
    stolen = {**document, "possession": first.keys.public.to_json()["possession"]}
    for member_keys, signer, code in (
        (canonical.canonical(stolen), keys, "POSSESSION_UNPROVEN"),
        (canonical.canonical(document), first.keys, "SIGNATURE_INVALID"),
        (canonical.canonical(document) + b" ", keys, "MALFORMED"),
        (canonical.canonical(first.keys.public.to_json()), first.keys, "CONFLICT"),
    ):
        signature = signer.sign(enrolment_message(token.token_id, csr_pem, member_keys))
        request = rig.request(token, keys, csr_pem, member_keys=member_keys, binding_signature=signature)
        assert await _refused(rig, error_of, token, request) == code
    for changes, code in (
        ({"csr_pem": b"nonsense"}, "SIGNATURE_INVALID"),
        ({"binding_signature": b""}, "SIGNATURE_INVALID"),
        ({"title": "two\nlines"}, "MALFORMED"),
        ({"owner": "x" * 10_000}, "MALFORMED"),
        ({"invitation": b"{}"}, "MALFORMED"),
    ):
        assert await _refused(rig, error_of, token, rig.request(token, keys, csr_pem, **changes)) == code
    assert (await _enrol(rig, token, rig.request(token, keys, csr_pem))).certificate_pem


async def test_sponsored_invitation_and_a_revoked_sponsor(rig: Any, error_of: Any) -> None:
    alpha = await rig.enrol("alpha")
    stub = membership_pb2_grpc.MembershipServiceStub(alpha.open_channel())

    async def invite(org: str) -> JoinToken:
        made = await stub.IssueInvitation(membership_pb2.IssueInvitationRequest(org=org, valid_s=600), timeout=5)
        body = invitation_body(
            token_id=made.token_id,
            org=org,
            address=made.address,
            authority_fingerprint=x509.fingerprint(made.authority_pem),
            join_certificate_fingerprint=x509.fingerprint(made.join_certificate_pem),
            expires_at=made.expires_at,
            genesis=None,
        )
        return JoinToken(
            consortium="demo",
            org=org,
            token_id=made.token_id,
            address=made.address,
            authority_pem=made.authority_pem.decode(),
            authority_fingerprint=x509.fingerprint(made.authority_pem),
            join_key_pem=made.join_key_pem.decode(),
            join_certificate_pem=made.join_certificate_pem.decode(),
            expires_at=made.expires_at,
            genesis=None,
            invitation=sign_statement(alpha.keys, kind="invitation", consortium="demo", issuer="alpha", body=body),
        )

    for org, valid_s, code in (
        ("alpha", 600, "ALREADY_A_MEMBER"),
        ("Bad Org", 600, "MALFORMED"),
        ("x", 1, "MALFORMED"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.IssueInvitation(membership_pb2.IssueInvitationRequest(org=org, valid_s=valid_s), timeout=5)
        assert error_of(caught.value) == code
    beta, gamma = await invite("beta"), await invite("gamma")
    _, csr_pem = x509.make_csr("beta")
    keys = OrgKeys.generate()
    assert (await _enrol(rig, beta, rig.request(beta, keys, csr_pem))).certificate_pem
    await rig.database.run(partial(rig.membership.revoke, org="alpha"))
    _, csr_pem = x509.make_csr("gamma")
    assert await _refused(rig, error_of, gamma, rig.request(gamma, OrgKeys.generate(), csr_pem)) == "TOKEN_INVALID"


def _signature(node: Any, charter: Charter) -> bytes:
    bls = base64.b64encode(node.keys.bls_sign(message_for("charter", charter.digest))).decode()
    body = {"charter": charter.digest, "bls": bls}
    return sign_statement(node.keys, kind="charter-signature", consortium="demo", issuer=node.org, body=body).to_bytes()


async def test_genesis_and_the_admission_of_a_fourth(rig: Any, error_of: Any) -> None:
    rig.once_only()
    founders = [await rig.enrol("alpha")]
    stubs = {"alpha": membership_pb2_grpc.MembershipServiceStub(founders[0].open_channel())}

    async def draft() -> tuple[Charter, Any]:
        response = await stubs["alpha"].GetCharterDraft(membership_pb2.GetCharterDraftRequest(), timeout=5)
        return Charter.from_json(canonical.parse(response.charter)), response

    async def submit(org: str, statement: bytes) -> bool:
        request = membership_pb2.SubmitCharterSignatureRequest(statement=statement)
        return (await stubs[org].SubmitCharterSignature(request, timeout=5)).final

    async def refused(org: str, statement: bytes) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await submit(org, statement)
        return error_of(caught.value)

    alone, _ = await draft()
    assert await refused("alpha", _signature(founders[0], alone)) == "ILLEGAL_EVENT"
    for org in ("beta", "gamma"):
        founders.append(await rig.enrol(org))
        stubs[org] = membership_pb2_grpc.MembershipServiceStub(founders[-1].open_channel())
    alpha, beta, gamma = founders
    assert await refused("alpha", _signature(alpha, alone)) == "CONFLICT"
    charter, _ = await draft()
    assert charter.organisations == ("alpha", "beta", "gamma")
    assert await refused("beta", _signature(alpha, charter)) in {"FORBIDDEN", "SIGNATURE_INVALID"}
    assert not await submit("alpha", _signature(alpha, charter))
    assert not await submit("beta", _signature(beta, charter))
    again, response = await draft()
    assert (again, list(response.signed_by), list(response.awaited)) == (charter, ["alpha", "beta"], ["gamma"])
    await gamma.connect()
    assert await submit("gamma", _signature(gamma, charter))
    final = canonical.parse((await gamma.read("envelope")).envelope.body)
    statement = Statement.from_json(final["statement"])
    verify_statement(statement, rig.keys.public.statement, kind="charter", consortium="demo")
    assert set(statement.body) == {"charter", "certificate", "signatures"}
    verify_genesis(charter, QuorumCertificate.from_json(statement.body["certificate"]))
    assert [each.kind for each in rig.appended] == ["charter"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await draft()
    assert error_of(caught.value) == "NOT_FOUND"
    assert await submit("alpha", _signature(alpha, charter))
    # From now on tokens name the genesis charter, and members propose and vote on the next one.
    assert (await rig.token("delta")).genesis == genesis_name(charter)
    delta = await rig.enrol("delta")
    stubs["delta"] = membership_pb2_grpc.MembershipServiceStub(delta.open_channel())
    newcomer = Member("delta", "Delta", "delta trust", delta.keys.public)
    following = replace(charter, version=2, previous=charter.digest, members=(*charter.members, newcomer))
    assert await refused("alpha", _signature(alpha, following)) == "ILLEGAL_EVENT"
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # who has only enrolled sponsors nobody
        await stubs["delta"].IssueInvitation(
            membership_pb2.IssueInvitationRequest(org="epsilon", valid_s=600), timeout=5
        )
    assert error_of(caught.value) == "NOT_A_MEMBER"
    deadline = instants.to_text(instants.now() + timedelta(days=1))
    proposal = CharterProposal(following, ("admit-member",), "compared", deadline)
    await alpha.connect()
    await alpha.send("charter.propose", _say(alpha, "charter-proposal", proposal.to_json()))
    assert (await _until(gamma, "charter.candidate"))["member"] == newcomer.to_json()
    told = Statement.from_json((await _until(gamma, "charter.proposed"))["statement"])
    assert CharterProposal.from_json(told.body) == proposal
    shown, response = await draft()
    assert (shown, list(response.awaited)) == (following, ["alpha", "beta", "gamma"])
    await delta.connect()
    await delta.send("charter.vote", _vote(delta, following))
    assert "NOT_A_MEMBER" in (await delta.read("refusal")).refusal.error.decode()
    await alpha.send("charter.vote", _vote(alpha, following))
    await gamma.send("charter.vote", _vote(gamma, following))
    second = Statement.from_json((await _until(gamma, "charter.final"))["statement"])
    verify_successor(charter, following, QuorumCertificate.from_json(second.body["certificate"]))
    listed = await stubs["delta"].ListCharters(membership_pb2.ListChartersRequest(from_version=2), timeout=5)
    assert Statement.from_bytes(listed.statements[0]) == second
    assert [each.kind for each in rig.appended[1:]] == ["charter-proposal", "charter-vote", "charter-vote", "charter"]


def _say(node: Any, kind: str, body: dict[str, Any]) -> dict[str, Any]:
    return sign_statement(node.keys, kind=kind, consortium="demo", issuer=node.org, body=body).to_json()


def _vote(node: Any, charter: Charter) -> dict[str, Any]:
    bls = base64.b64encode(node.keys.bls_sign(message_for("charter", charter.digest))).decode()
    return _say(node, "charter-vote", CharterVote(charter.digest, True, bls, "").to_json())


async def _until(node: Any, kind: str) -> dict[str, Any]:
    """Read the node's stream up to a message of `kind`; returns its body."""
    while True:
        frame = await node.read()
        if frame.WhichOneof("frame") == "envelope" and frame.envelope.kind == kind:
            return dict(canonical.parse(frame.envelope.body))
