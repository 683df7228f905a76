"""The coordinator's authorisation tables, cell by cell: every REST route, every gRPC method, every kind of identity."""

import importlib
import re
from pathlib import Path

import grpc
import httpx
import pytest

from comity.v1 import membership_pb2
from comity.wire.authorisation import PUBLIC
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.grpc_errors import from_rpc
from comity.wire.http_api import Gate
from comity_coordinator.authorisation import JOIN, METHODS, OPERATOR, ORG, REPLICA, ROUTES
from comity_coordinator.operator_api import operator_server
from comity_coordinator.transport.identity import current_peer
from comity_coordinator.transport.server import Edge
from comity_crypto import x509

TOKEN = "a-token-for-tests"
WHERE = "coordinator/comity_coordinator/authorisation.py"
CONSORTIUM = "demo"


@pytest.fixture
def api(world):
    server = operator_server(
        listen="127.0.0.1:0",
        token=TOKEN,
        db=world.db,
        ledger=world.ledger,
        feed=world.feed,
        members=lambda conn: (),
        revoke=lambda conn, org: None,
        connected=frozenset,
    )
    yield server._server.config.app
    server._socket.close()


def gate_of(api):
    (found,) = (each for each in api.user_middleware if each.cls is Gate)
    return found


def served(api):
    return sorted((method, route.path) for route in gate_of(api).kwargs["routes"] for method in route.methods)


def test_every_rest_route_has_a_row(api):
    there = set(served(api))
    assert sorted(there - set(ROUTES)) == [], f"add a row for each of these to {WHERE}"
    assert sorted(set(ROUTES) - there) == [], f"nothing serves these rows of {WHERE} any more"


async def test_each_rest_cell(api):
    reached = []

    async def behind(scope, receive, send):
        reached.append((scope["method"], scope["state"]["admitted"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    transport = httpx.ASGITransport(app=Gate(behind, **gate_of(api).kwargs))
    async with httpx.AsyncClient(transport=transport, base_url="http://coordinator") as client:
        for method, path in served(api):
            filled = re.sub(r"\{[^}]+\}", "x", path)
            public = ROUTES[(method, path)] == PUBLIC
            for headers in ({}, {"authorization": "Bearer other"}, {"authorization": f"Bearer {TOKEN}x"}):
                answer = await client.request(method, filled, headers=headers)
                assert answer.status_code == (200 if public else 401), (method, path)
            answer = await client.request(method, filled, headers={"authorization": f"Bearer {TOKEN}"})
            assert answer.status_code == 200, (method, path)
    assert set(reached) == set(served(api))


def test_the_operator_has_no_member_s_right():
    """An operator reads, and closes transport: nothing on its API proposes, votes, signs, answers or withdraws."""
    assert {key for key in ROUTES if key[0] != "GET"} == {("POST", "/v1/members/{org}/revoke")}
    assert {role for row in ROUTES.values() if row != PUBLIC for role in row} == {OPERATOR}
    assert OPERATOR not in METHODS.values()


def rpc_methods():
    """Every method of every service in protos/comity/v1."""
    folder = Path(membership_pb2.__file__).parent
    for path in sorted(folder.glob("*_pb2.py")):
        module = importlib.import_module(f"comity.v1.{path.stem}")
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield f"/{service.full_name}/{method.name}"


def test_every_grpc_method_has_a_row():
    there = set(rpc_methods())
    assert sorted(there - set(METHODS)) == [], f"add a row for each of these to {WHERE}"
    assert sorted(set(METHODS) - there) == [], f"no service has these rows of {WHERE} any more"
    assert set(METHODS.values()) <= {JOIN, ORG, REPLICA}


class Aborted(Exception):  # noqa: N818 - what it stands for
    """What a context raises when a call is ended."""


class Context:
    """A call with a certificate; `ended` is what it was refused with."""

    def __init__(self, pem):
        self._pem = pem
        self.ended = None

    def auth_context(self):
        return {"x509_pem_cert": [self._pem]} if self._pem else {}

    async def abort(self, code, details="", trailing_metadata=()):
        self.ended = (code, details, trailing_metadata)
        raise Aborted


@pytest.fixture(scope="module")
def certificates():
    """A certificate of every kind of identity, by name."""
    ca, other = x509.create_authority(CONSORTIUM), x509.create_authority("other")

    def node(authority, consortium, org):
        return x509.issue_node(*authority, x509.make_csr(org)[1], consortium, org)

    return {
        "nobody": b"",
        "join": x509.issue_join(*ca, CONSORTIUM, "t-1", 60)[1],
        "org": node(ca, CONSORTIUM, "alpha"),
        "revoked": node(ca, CONSORTIUM, "revoked"),
        "elsewhere": node(other, "other", "alpha"),
        "replica": x509.issue_replica(*ca, CONSORTIUM, "b", 60)[1],
        "coordinator": x509.issue_server(*ca, CONSORTIUM, ["localhost"], [])[1],
        "garbage": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    }


EXPECTED = {
    "nobody": ErrorCode.UNAUTHENTICATED,
    "revoked": ErrorCode.REVOKED,
    "elsewhere": ErrorCode.FORBIDDEN,
    "coordinator": ErrorCode.FORBIDDEN,
    "garbage": ErrorCode.CERTIFICATE_INVALID,
}


async def admit(peer):
    if peer.name == "revoked":
        raise ComityError(ErrorCode.REVOKED)


async def call(method, pem):
    """Call `method` through the real edge; returns "reached" or the code that it was refused with."""

    async def behaviour(request, context):
        assert current_peer().name in ("alpha", "t-1", "b")
        return "reached"

    class Details:
        pass

    details = Details()
    details.method = method

    async def continuation(_details):
        return grpc.unary_unary_rpc_method_handler(behaviour)

    handler = await Edge(CONSORTIUM, admit).intercept_service(continuation, details)
    context = Context(pem)
    try:
        return await handler.unary_unary(None, context)
    except Aborted:
        code, message, trailing = context.ended
        error = from_rpc(_Error(code, message, trailing))
        return error.code


class _Error:
    """What the client would have seen of an abort."""

    def __init__(self, code, details, trailing):
        self._code, self._details, self._trailing = code, details, trailing

    def code(self):
        return self._code

    def details(self):
        return self._details

    def trailing_metadata(self):
        return self._trailing


@pytest.mark.parametrize(
    "identity", ["nobody", "join", "org", "revoked", "elsewhere", "replica", "coordinator", "garbage"]
)
async def test_each_grpc_cell(certificates, identity):
    wrong = []
    for method in rpc_methods():
        expected = EXPECTED.get(identity) or ("reached" if METHODS[method] == identity else ErrorCode.FORBIDDEN)
        if identity == "revoked" and METHODS[method] != ORG:
            expected = ErrorCode.FORBIDDEN
        found = await call(method, certificates[identity])
        if found != expected:
            wrong.append((method, found, expected))
    assert wrong == []


async def test_a_method_without_a_row_is_closed_to_all(certificates):
    for method in ("/comity.v1.MembershipService/NewMethod", "/comity.v1.NewService/Enrol", "Enrol", ""):
        for identity in ("join", "org", "replica"):
            assert await call(method, certificates[identity]) is ErrorCode.FORBIDDEN
