"""The chain of charters: nothing enters that does not follow, and nothing is signed twice."""

from __future__ import annotations

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keys import OrgKeys
from comity_node.governance.store import CharterStore
from comity_policies.charter import genesis_name


async def refusal(store: CharterStore, statement) -> ErrorCode:
    with pytest.raises(ComityError) as refused:
        await store.accept(statement)
    return refused.value.code


def sign(store: CharterStore, journal, charter) -> None:
    journal.transact(lambda conn: store.sign_once(conn, charter))


async def test_a_founder_accepts_only_the_genesis_that_it_signed(charters, journal, consortium) -> None:
    genesis = consortium.charter()
    statement = consortium.final(genesis)
    assert await refusal(charters, statement) is ErrorCode.GENESIS_MISMATCH
    sign(charters, journal, genesis)
    assert await charters.accept(statement)
    assert not await charters.accept(statement)
    assert charters.current() == genesis
    assert charters.at(genesis.digest) == genesis
    assert charters.genesis_name() == genesis_name(genesis)


async def test_a_newcomer_accepts_only_the_genesis_that_was_typed(make_settings, journal, consortium) -> None:
    genesis = consortium.charter()
    other = consortium.charter(orgs=("hospital-a", "hospital-b"))
    wrong = CharterStore(make_settings(genesis_name(other)), journal)
    assert await refusal(wrong, consortium.final(genesis)) is ErrorCode.GENESIS_MISMATCH
    right = CharterStore(make_settings(genesis_name(genesis).upper().replace("-", " ")), journal)
    assert await right.accept(consortium.final(genesis))


async def test_a_genesis_without_every_founder_is_refused(charters, journal, consortium) -> None:
    genesis = consortium.charter()
    sign(charters, journal, genesis)
    lacking = consortium.final(genesis, signers=("hospital-a", "hospital-b"))
    assert await refusal(charters, lacking) is ErrorCode.QUORUM_MISSING


async def test_a_forged_log_is_refused(charters, journal, consortium) -> None:
    genesis = consortium.charter()
    sign(charters, journal, genesis)
    assert await refusal(charters, consortium.final(genesis, log=OrgKeys.generate())) is ErrorCode.SIGNATURE_INVALID
    impostor = type(consortium)(OrgKeys.generate(), consortium.keys)
    forged = impostor.charter()
    sign(charters, journal, forged)
    assert await refusal(charters, impostor.final(forged)) is ErrorCode.CHARTER_INVALID


async def test_successors_follow_one_by_one_and_survive_a_restart(make_settings, charters, journal, consortium) -> None:
    genesis = consortium.charter()
    sign(charters, journal, genesis)
    await charters.accept(consortium.final(genesis))
    second = consortium.charter(2, genesis.digest, (*consortium.charter().organisations, "hospital-d"))
    third = consortium.charter(3, second.digest)
    assert await refusal(charters, consortium.final(third)) is ErrorCode.CHARTER_INVALID
    one = consortium.final(second, signers=("hospital-a",))
    assert await refusal(charters, one) is ErrorCode.QUORUM_MISSING
    assert await charters.accept(consortium.final(second, signers=("hospital-a", "hospital-c")))
    fork = consortium.charter(2, genesis.digest, ("hospital-a", "hospital-b"))
    assert await refusal(charters, consortium.final(fork)) is ErrorCode.CHARTER_INVALID
    again = CharterStore(make_settings(None), journal)
    again.load()
    assert again.current() == second
    assert again.next_version() == 3


async def test_one_successor_is_signed_for_a_version(charters, journal, consortium) -> None:
    genesis = consortium.charter()
    second = consortium.charter(2, genesis.digest, (*genesis.organisations, "hospital-d"))
    rival = consortium.charter(2, genesis.digest, ("hospital-a", "hospital-b"))
    sign(charters, journal, second)
    sign(charters, journal, second)
    with pytest.raises(ComityError) as refused:
        sign(charters, journal, rival)
    assert refused.value.code is ErrorCode.CONFLICT


async def test_genesis_drafts_may_change_while_founders_join(charters, journal, consortium) -> None:
    sign(charters, journal, consortium.charter(orgs=("hospital-a", "hospital-b")))
    sign(charters, journal, consortium.charter())
    assert await charters.accept(consortium.final(consortium.charter()))


def test_before_genesis_nothing_is_in_force(charters) -> None:
    assert charters.current() is None
    with pytest.raises(ComityError, match="CHARTER_INVALID"):
        charters.in_force()
