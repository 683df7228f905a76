"""The gRPC edges of membership and governance: they only convert. Who may call is decided by `transport.server`."""

from __future__ import annotations

from functools import partial
from typing import Any

from sqlalchemy import Connection

from comity.v1 import enrolment_pb2, enrolment_pb2_grpc, membership_pb2, membership_pb2_grpc
from comity.wire import canonical
from comity_coordinator.db import Database
from comity_coordinator.governance.service import Governance
from comity_coordinator.membership.service import Authority, Enrolment, Invitation, Membership
from comity_coordinator.transport.identity import current_peer


class EnrolmentServicer(enrolment_pb2_grpc.EnrolmentServiceServicer):
    """The only service for holders of a join certificate."""

    def __init__(self, database: Database, membership: Membership, authority: Authority, log_key: bytes) -> None:
        self._database = database
        self._membership = membership
        self._authority = authority
        self._log_key = log_key

    async def Enrol(  # noqa: N802 - gRPC's name
        self, request: enrolment_pb2.EnrolRequest, context: Any
    ) -> enrolment_pb2.EnrolResponse:
        """Enrol one organisation."""
        peer = current_peer()
        enrolment = Enrolment(
            org=request.org,
            invitation=request.invitation,
            csr_pem=request.csr_pem,
            member_keys=request.member_keys,
            binding_signature=request.binding_signature,
            title=request.title,
            owner=request.owner,
        )
        certificate_pem = await self._database.run(
            partial(self._membership.enrol, token_id=peer.name, fingerprint=peer.fingerprint, request=enrolment)
        )
        return enrolment_pb2.EnrolResponse(
            certificate_pem=certificate_pem, authority_pem=self._authority.certificate_pem, log_key=self._log_key
        )


class MembershipServicer(membership_pb2_grpc.MembershipServiceServicer):
    """What an enrolled organisation does about members, certificates and charters."""

    def __init__(
        self, database: Database, membership: Membership, governance: Governance, authority: Authority
    ) -> None:
        self._database = database
        self._membership = membership
        self._governance = governance
        self._authority = authority

    async def IssueInvitation(  # noqa: N802 - gRPC's name
        self, request: membership_pb2.IssueInvitationRequest, context: Any
    ) -> membership_pb2.IssueInvitationResponse:
        """Register an invitation of the caller."""
        sponsor = current_peer().name

        def invite(conn: Connection) -> Invitation:
            self._governance.check_sponsor(conn, sponsor)
            return self._membership.invite(conn, sponsor, request.org, request.valid_s)

        made = await self._database.run(invite)
        return membership_pb2.IssueInvitationResponse(
            token_id=made.token_id,
            join_key_pem=made.join_key_pem,
            join_certificate_pem=made.join_certificate_pem,
            authority_pem=self._authority.certificate_pem,
            address=self._authority.address,
            expires_at=made.expires_at,
        )

    async def RotateCertificate(  # noqa: N802 - gRPC's name
        self, request: membership_pb2.RotateCertificateRequest, context: Any
    ) -> membership_pb2.RotateCertificateResponse:
        """Issue a new certificate for the caller."""
        certificate_pem = await self._database.run(
            partial(
                self._membership.rotate,
                org=current_peer().name,
                csr_pem=request.csr_pem,
                signature=request.signature,
            )
        )
        return membership_pb2.RotateCertificateResponse(certificate_pem=certificate_pem)

    async def GetCharterDraft(  # noqa: N802 - gRPC's name
        self, request: membership_pb2.GetCharterDraftRequest, context: Any
    ) -> membership_pb2.GetCharterDraftResponse:
        """Return the next charter as it stands."""
        charter = await self._database.run(self._governance.draft)
        signed, awaited = await self._database.run(partial(self._governance.signed_by, charter=charter))
        return membership_pb2.GetCharterDraftResponse(
            charter=canonical.canonical(charter.to_json()), signed_by=signed, awaited=awaited
        )

    async def SubmitCharterSignature(  # noqa: N802 - gRPC's name
        self, request: membership_pb2.SubmitCharterSignatureRequest, context: Any
    ) -> membership_pb2.SubmitCharterSignatureResponse:
        """Take the caller's signature over the draft."""
        final = await self._database.run(
            partial(self._governance.submit, org=current_peer().name, data=request.statement)
        )
        return membership_pb2.SubmitCharterSignatureResponse(final=final)

    async def ListCharters(  # noqa: N802 - gRPC's name
        self, request: membership_pb2.ListChartersRequest, context: Any
    ) -> membership_pb2.ListChartersResponse:
        """Return final charters."""
        found = await self._database.run(partial(self._governance.charters, from_version=request.from_version))
        return membership_pb2.ListChartersResponse(statements=found)
