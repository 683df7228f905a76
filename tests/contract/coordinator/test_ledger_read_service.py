"""LedgerReadService over a real gRPC channel."""

import grpc
import pytest

from comity.v1 import ledger_pb2, ledger_pb2_grpc
from comity.wire import grpc_errors
from comity.wire.errors import ErrorCode
from comity_coordinator.ledger.servicer import LedgerReadServicer
from comity_coordinator.standing import Memory
from comity_crypto.merkle import leaf_hash, verify_inclusion
from comity_crypto.notes import verify_note


@pytest.fixture
async def stub(world):
    server = grpc.aio.server()
    ledger_pb2_grpc.add_LedgerReadServiceServicer_to_server(
        LedgerReadServicer(world.db, world.ledger, Memory(world.ledger)), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield ledger_pb2_grpc.LedgerReadServiceStub(channel)
    await server.stop(0)


async def test_reads_and_proves(world, stub, names):
    with pytest.raises(grpc.aio.AioRpcError) as empty:
        await stub.GetCheckpoint(ledger_pb2.GetCheckpointRequest())
    assert grpc_errors.from_rpc(empty.value).code is ErrorCode.NOT_FOUND
    said = world.say("beta", "note", {"n": 1})
    world.db.transact(lambda conn: world.ledger.append(conn, said))
    world.integrate()
    note = (await stub.GetCheckpoint(ledger_pb2.GetCheckpointRequest())).note
    head = verify_note(note, names.log, world.log_keys.public.statement)
    page = await stub.ListEntries(ledger_pb2.ListEntriesRequest(start=1))
    assert list(page.statements) == [said.to_bytes()]
    proof = await stub.GetInclusionProof(ledger_pb2.GetInclusionProofRequest(statement_digest=said.digest))
    assert proof.note == note
    verify_inclusion(leaf_hash(said.to_bytes()), proof.index, head.size, list(proof.hashes), head.root)
    grown = await stub.GetConsistencyProof(ledger_pb2.GetConsistencyProofRequest(old_size=1, new_size=2))
    assert list(grown.hashes) == [leaf_hash(said.to_bytes())]


async def test_refusals_carry_the_catalogue(world, stub):
    world.integrate()
    for call, code in (
        (stub.GetInclusionProof(ledger_pb2.GetInclusionProofRequest(statement_digest="x")), ErrorCode.MALFORMED),
        (stub.GetInclusionProof(ledger_pb2.GetInclusionProofRequest(statement_digest="ab" * 32)), ErrorCode.NOT_FOUND),
        (stub.ListEntries(ledger_pb2.ListEntriesRequest(start=2**64 - 1)), ErrorCode.MALFORMED),
        (stub.GetConsistencyProof(ledger_pb2.GetConsistencyProofRequest(new_size=2**60)), ErrorCode.PROOF_INVALID),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await call
        assert grpc_errors.from_rpc(refusal.value).code is code
