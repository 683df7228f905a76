"""What `masked` refuses, what policies see, what the coordinator holds, and what it may not change."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.training import masked_adding
from comity_crypto.secagg.masked.keys import RoundSecret
from comity_crypto.secagg.masked.messages import MaskedOffer
from comity_crypto.statements import Statement, sign_statement
from comity_node.training.profiles import sum_store
from comity_policies.decisions import Stage

PARTIES = 4


def asked(rig, app, **wishes):
    config = {"params": 2_000, "num-server-rounds": 1, "differ": wishes.pop("differ", 0)}
    terms = {"weight_max": 100, "clip_norm": "60", **wishes.pop("terms", {})}
    agreement = rig.agree(app, rounds=1, config=config, terms=terms, **wishes)
    return agreement, rig.board.prepare(agreement)


async def test_weighted_means_are_those_without_masks(rig, make_app):
    app = make_app()
    found = {}
    for profile in ("plain", "masked"):
        terms = {"aggregation": profile}
        _, run = asked(rig, app, terms=terms) if profile == "masked" else plain(rig, app)
        finished = await rig.finish(run)
        assert finished["state"] == "COMPLETED", finished
        await rig.until((rig.result("hospital-b", run) / "card.json").exists)  # written last: then the model is whole
        with np.load(rig.result("hospital-b", run) / "model.npz") as arrays:
            found[profile] = arrays[arrays.files[0]]
        page = await rig.nodes["hospital-a"].service.events.page(run)
        metrics = {event.body["stage"]: event.body["metrics"] for event in page if event.kind == "metrics"}
        assert metrics["train"]["train_loss"] == pytest.approx((0 + 1.5 * 20 + 3 * 30 + 4.5 * 40) / 100, rel=1e-4)
        assert metrics["evaluate"]["accuracy"] == pytest.approx(0.625, abs=1e-6)
    # A weight is rounded to 2^-16 before it counts; each of the four is rounded by less than one level of the range.
    x = np.linspace(-1, 1, 2_000, dtype=np.float32)
    parts = [np.random.default_rng(place).standard_normal(2_000).astype(np.float32) for place in range(PARTIES)]
    wanted = x + np.average(parts, axis=0, weights=[round(10 * (place + 1) * 65_536 / 100) for place in range(PARTIES)])
    assert np.abs(found["masked"] - wanted).max() < PARTIES * 8 * 60 / 2_000**0.5 / (1 << 25) + 8 * 2.0**-23
    assert np.abs(found["masked"] - found["plain"]).max() < PARTIES * 2.0**-17 * 8
    facts = [document["result"] for stage, document in rig.nodes["hospital-c"].policy.asked if stage == "egress"]
    assert [fact["aggregation"] for fact in facts] == ["plain", "plain", "masked", "masked"]
    assert [fact["kind"] for fact in facts[2:]] == ["model", "statistic"]


def plain(rig, app):
    config = {"params": 2_000, "num-server-rounds": 1, "differ": 0}
    parties = tuple(sorted(rig.nodes))
    agreement = type(rig).__mro__[2].agree(rig, app, rounds=1, config=config, parties=parties)
    return agreement, rig.board.prepare(agreement)


@pytest.mark.parametrize("strategy", ["flower.FedMedian()", "flower.FedAvg(fraction_train=0.5)"])
async def test_strategies_that_cannot_work_on_sums_are_refused_before_an_order(rig, make_app, strategy):
    _, run = asked(rig, make_app(strategy))
    finished = await rig.finish(run)
    assert (finished["state"], finished["error"]["code"]) == ("FAILED", "STRATEGY_REFUSED")
    assert finished["orders"] == {}
    assert finished["error"]["detail"]


async def test_an_adaptive_strategy_runs_unmodified(rig, make_app):
    _, run = asked(rig, make_app("flower.FedAdam()"))
    assert (await rig.finish(run))["state"] == "COMPLETED"


async def test_an_egress_denial_lets_no_byte_out_and_the_others_go_on(rig, make_app):
    rig.nodes["hospital-c"].policy.deny(Stage.EGRESS, "egress.cohort")
    agreement, run = asked(rig, make_app(), terms={"min_participants": 3})
    finished = await rig.finish(run)
    dropped = {each["org"]: each["code"] for each in finished["manifest"][0]["dropped"]}
    assert dropped["hospital-c"] == "EGRESS_DENIED"
    uploads = [body for kind, body in rig.board.seen if kind == "secagg" and b'secagg.commitment"' in body]
    assert uploads
    assert not [body for body in uploads if Statement.from_bytes(body).issuer == "hospital-c"]
    assert rig.spent("hospital-c", agreement).get("egress_bytes", 0) == 0
    assert finished["state"] == "COMPLETED", finished


async def test_the_coordinator_holds_no_window_of_what_was_sent(rig, make_app):
    rig.board.store.discard = lambda owner, digest: None
    _, run = asked(rig, make_app())
    assert (await rig.finish(run))["state"] == "COMPLETED"
    await rig.until((rig.result("hospital-b", run) / "content.bin").exists)
    held = [path.read_bytes() for path in rig.board.folder.iterdir()] + [body for _, body in rig.board.seen]
    everything = b"".join(held)
    uploads = [path for path in rig.board.folder.iterdir() if path.stat().st_size > 8_000]
    assert len(uploads) >= PARTIES + 1, "the uploads and their sum are among it"
    x = np.linspace(-1, 1, 2_000, dtype=np.float32)
    parts = [x + np.random.default_rng(place).standard_normal(2_000).astype(np.float32) for place in range(PARTIES)]
    for array in (x, *parts, *(part - x for part in parts)):
        data = array.astype(np.float32).tobytes()
        windows = {data[start : start + 16] for start in range(0, len(data) - 16, 16)}
        assert not [window for window in windows if window in everything]
    assert b"patient-7" not in everything
    assert not re.search(rb"train_loss|accuracy", everything)


async def test_a_sum_that_the_coordinator_changed_is_never_used(rig, make_app, monkeypatch):
    real = masked_adding.add_blobs

    def changing(uploads, words, fd):
        real(uploads, words, fd)
        os.pwrite(fd, b"\x01\x02\x03\x04", 64 + 4 * (words - 1))

    monkeypatch.setattr(masked_adding, "add_blobs", changing)
    _, run = asked(rig, make_app())
    finished = await rig.finish(run)
    assert finished["state"] == "FAILED"
    assert {each["code"] for each in finished["manifest"][0]["dropped"]} == {"SUM_MISMATCH"}


async def test_a_party_whose_upload_never_comes_is_left_out_and_named(rig, make_app, monkeypatch):
    whole = rig.board.store.whole

    async def missing(receiver, org, digest):
        if org == "hospital-d":
            raise ComityError(ErrorCode.PAYLOAD_MISSING)
        return await whole(receiver, org, digest)

    monkeypatch.setattr(rig.board.store, "whole", missing)
    _, run = asked(rig, make_app(), terms={"min_participants": 3})
    finished = await rig.finish(run)
    assert finished["state"] == "COMPLETED", finished
    first = finished["manifest"][0]
    assert first["participants"] == ["hospital-a", "hospital-b", "hospital-c"]
    assert [(each["org"], each["code"]) for each in first["dropped"]] == [("hospital-d", "TIMEOUT")]


async def test_a_lead_that_says_two_things_gets_no_sum(rig, make_app):
    """One party is offered another secret for the same place, well formed; its announcement gives the lead away."""
    _, run = asked(rig, make_app())
    real, other, second = rig.board.relay, RoundSecret(os.urandom), []

    async def relay(sender, kind, statement, receivers, run, inline):
        body = statement.body
        parcel = body["message"] if kind == "secagg" else {"kind": ""}
        if parcel["kind"] == "secagg.masked.offer" and (parcel["body"]["attempt"], parcel["body"]["round"]) == (0, 0):
            offer = MaskedOffer.from_json({**parcel["body"], "key_id": other.key_id})
            forged = {**body, "message": {"kind": offer.KIND, "body": offer.to_json()}, "round_key": other.key_id}
            signed = sign_statement(
                rig.keys["hospital-a"], kind="secagg", consortium="oncology", issuer="hospital-a", body=forged
            )
            second.append(offer.digest)
            await real(sender, kind, statement, tuple(org for org in receivers if org != "hospital-c"), run, inline)
            await real(sender, kind, signed, ("hospital-c",), run, inline)
            return
        await real(sender, kind, statement, receivers, run, inline)

    rig.board.relay = relay
    finished = await rig.finish(run)
    assert second, "the lead said two things"
    said = [Statement.from_bytes(body).body for kind, body in rig.board.seen if kind == "secagg"]
    sessions = {
        each["message"]["body"]["session"] for each in said if each["message"]["kind"] == "secagg.commitments-signature"
    }
    assert second[0] not in sessions
    codes = {each["message"]["body"]["code"] for each in said if each["message"]["kind"] == "secagg.abort"}
    assert "ROSTER_MISMATCH" in codes
    assert finished["state"] == "COMPLETED", "the next attempt is an honest one"


async def test_a_confirmed_part_leaves_no_file(rig, make_app):
    rig.board.auto_close = False
    _, run = asked(rig, make_app())
    assert (await rig.finish(run))["state"] == "COMPLETED"
    for node in rig.nodes.values():
        await rig.until(lambda node=node: not list((node.home / "payloads").glob("sum-*")))
        await rig.until(lambda node=node: not list((node.home / "payloads").glob(".upload-*")))
        assert not node.read(lambda conn: sum_store.files_of(conn, run))
