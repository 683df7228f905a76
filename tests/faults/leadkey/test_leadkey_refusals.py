"""What `lead-key` refuses, what policies see, what the coordinator holds, and what becomes of a lost party."""

from __future__ import annotations

import asyncio
import re
import shutil

import numpy as np
import pytest

from comity_crypto.sealing import seal_to_bytes
from comity_crypto.secagg.bfv.params import AGG_Q16
from comity_crypto.secagg.lead_key.messages import Offer
from comity_crypto.statements import Statement, sign_statement
from comity_node.training import store
from comity_node.training.profiles import sum_store
from comity_node.training.profiles.sum_part import key_context
from comity_policies.decisions import Stage

SERVER = """
import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp import strategy as flower
app = ServerApp()
@app.main()
def main(grid: Grid, context: Context) -> None:
    arrays = ArrayRecord([np.linspace(-1, 1, int(context.run_config["params"]), dtype=np.float32)])
    strategy = {strategy}
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=int(context.run_config["num-server-rounds"]))
"""
CLIENT = """
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
@app.train()
def train(message: Message, context: Context) -> Message:
    place = context.node_config["partition-id"]
    noise = np.random.default_rng(place)
    asked = message.content["arrays"].to_numpy_ndarrays()
    arrays = [array + noise.standard_normal(array.shape).astype(array.dtype) for array in asked]
    metrics = MetricRecord({"train_loss": 1.5 * place, "num-examples": 10 * (place + 1)})
    secret = ConfigRecord({"name": "patient-7"})
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics, "secret": secret})
    return Message(content, reply_to=message)
@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    place = context.node_config["partition-id"]
    extra = {"only-here": 1.0} if context.run_config["differ"] and place == 1 else {}
    metrics = MetricRecord({"accuracy": 0.25 * (place + 1), "counts": [place, -7], "num-examples": 10, **extra})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
"""


@pytest.fixture
def make_app(tmp_path, dummy):
    def make(strategy="flower.FedAvg()"):
        folder = tmp_path / "app"
        shutil.copytree(dummy, folder)
        (folder / "dummy" / "server_app.py").write_text(SERVER.replace("{strategy}", strategy))
        (folder / "dummy" / "client_app.py").write_text(CLIENT)
        text = (folder / "pyproject.toml").read_text().replace("params = 10000", "params = 10000\ndiffer = 0")
        (folder / "pyproject.toml").write_text(text)
        return folder

    return make


def asked(rig, app, **wishes):
    config = {"params": 2_000, "num-server-rounds": 1, "differ": wishes.pop("differ", 0)}
    terms = {"weight_max": 100, "clip_norm": "60", **wishes.pop("terms", {})}
    agreement = rig.agree(app, rounds=1, config=config, terms=terms, **wishes)
    return agreement, rig.board.prepare(agreement)


async def test_weighted_means_reach_the_app_and_no_text_does(rig, make_app):
    _, run = asked(rig, make_app())
    finished = await rig.finish(run)
    assert finished["state"] == "COMPLETED", finished
    await rig.until((rig.result("hospital-b", run) / "card.json").exists)  # written last: then the model is whole
    x = np.linspace(-1, 1, 2_000, dtype=np.float32)
    parts = [np.random.default_rng(place).standard_normal(2_000).astype(np.float32) for place in range(3)]
    wanted = x + np.average(parts, axis=0, weights=[10, 20, 30])
    with np.load(rig.result("hospital-b", run) / "model.npz") as arrays:
        found = arrays[arrays.files[0]]
    # Each part is rounded by less than one step of the range, of three parts that weigh 0.6 together.
    assert np.abs(found - wanted).max() < 3 * 8 * 60 / 2_000**0.5 / 32767 / 0.6 + 1e-6
    page = await rig.nodes["hospital-a"].service.events.page(run)
    metrics = {event.body["stage"]: event.body["metrics"] for event in page if event.kind == "metrics"}
    assert metrics["train"] == {"train_loss": pytest.approx((0 + 1.5 * 20 + 3 * 30) / 60, rel=1e-4)}
    assert metrics["evaluate"]["accuracy"] == pytest.approx(0.5, abs=1e-9)
    assert metrics["evaluate"]["counts"] == pytest.approx([1.0, -7.0], abs=1e-9)
    facts = [document["result"] for stage, document in rig.nodes["hospital-c"].policy.asked if stage == "egress"]
    assert [fact["kind"] for fact in facts] == ["model", "statistic"]
    assert [fact["metrics"] for fact in facts] == [
        ["num-examples", "train_loss"],
        ["accuracy", "counts", "num-examples"],
    ]
    assert {fact["aggregation"] for fact in facts} == {"lead-key"}
    assert {fact["clipped"] for fact in facts} == {0}


async def test_what_is_clipped_is_counted(rig, make_app):
    _, run = asked(rig, make_app(), terms={"clip_norm": "0.5", "weight_max": 25})
    assert (await rig.finish(run))["state"] == "COMPLETED"
    facts = [document["result"] for stage, document in rig.nodes["hospital-c"].policy.asked if stage == "egress"]
    # Its norm, and its 30 examples of which 25 may count.
    assert facts[0]["clipped"] == 2


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("flower.FedMedian()", marks=pytest.mark.slow),  # `masked` asks for it too
        "flower.Krum(num_malicious_nodes=0)",
        pytest.param("flower.FedAvg(fraction_train=0.5)", marks=pytest.mark.slow),
        "flower.DifferentialPrivacyServerSideFixedClipping(flower.FedAvg(), 1.0, 1.0, 3)",
    ],
)
async def test_strategies_that_cannot_work_on_sums_are_refused_before_an_order(rig, make_app, strategy):
    _, run = asked(rig, make_app(strategy))
    finished = await rig.finish(run)
    assert (finished["state"], finished["error"]["code"]) == ("FAILED", "STRATEGY_REFUSED")
    assert finished["orders"] == {}
    assert finished["error"]["detail"]


async def test_a_question_to_a_subset_is_refused_whoever_asks(rig, make_app):
    app = make_app()
    text = (app / "dummy" / "server_app.py").read_text()
    own = "[grid.create_message(RecordDict({'arrays': arrays}), 'train', grid.get_node_ids()[0], '1')]"
    text = text.replace("ArrayRecord, Context", "ArrayRecord, Context, RecordDict")
    (app / "dummy" / "server_app.py").write_text(
        text.split("    strategy =")[0] + f"    grid.send_and_receive({own})\n"
    )
    _, run = asked(rig, app)
    finished = await rig.finish(run)
    assert finished["error"]["code"] == "STRATEGY_REFUSED"
    assert finished["orders"] == {}


async def test_parties_with_other_metrics_end_the_question_by_name(rig, make_app):
    _, run = asked(rig, make_app(), differ=1)
    finished = await rig.finish(run)
    assert finished["state"] == "FAILED"
    assert finished["manifest"][0]["dropped"][0]["code"] == "REPLY_SHAPE"


async def test_an_egress_denial_lets_no_byte_out_and_fails_the_sum(rig, make_app):
    rig.nodes["hospital-c"].policy.deny(Stage.EGRESS, "egress.cohort")
    agreement, run = asked(rig, make_app())
    finished = await rig.finish(run)
    assert finished["state"] == "FAILED"
    dropped = {each["org"]: each["code"] for each in finished["manifest"][0]["dropped"]}
    assert dropped["hospital-c"] == "EGRESS_DENIED"
    uploads = [body for kind, body in rig.board.seen if kind == "secagg" and b'secagg.commitment"' in body]
    assert not [body for body in uploads if Statement.from_bytes(body).issuer == "hospital-c"]
    assert rig.spent("hospital-c", agreement).get("egress_bytes", 0) == 0


async def test_the_coordinator_holds_no_window_of_what_was_sent(rig, make_app):
    rig.board.store.discard = lambda owner, digest: None
    _, run = asked(rig, make_app())
    assert (await rig.finish(run))["state"] == "COMPLETED"
    await rig.until((rig.result("hospital-b", run) / "content.bin").exists)
    held = [path.read_bytes() for path in rig.board.folder.iterdir()] + [body for _, body in rig.board.seen]
    everything = b"".join(held)
    assert len(everything) > 1_000_000, "the uploads are among it"
    x = np.linspace(-1, 1, 2_000, dtype=np.float32)
    parts = [x + np.random.default_rng(place).standard_normal(2_000).astype(np.float32) for place in range(3)]
    for array in (x, *parts, *(part - x for part in parts)):
        data = array.astype(np.float32).tobytes()
        windows = {data[start : start + 16] for start in range(0, len(data) - 16, 16)}
        assert not [window for window in windows if window in everything]
    assert b"patient-7" not in everything
    assert not re.search(rb"train_loss|accuracy", everything)


async def test_a_lead_that_says_two_things_gets_no_sum(rig, make_app):
    """One party is offered another key for the same place, well formed; its announcement gives the lead away."""
    _, run = asked(rig, make_app())
    real, other = rig.board.relay, await rig.workers.make_key(AGG_Q16)
    second = []

    async def relay(sender, kind, statement, receivers, run, inline):
        body = statement.body
        parcel = body["message"] if kind == "secagg" else {"kind": ""}
        # `round` of an offer counts a run's orders: the first one, to train.
        if parcel["kind"] == "secagg.offer" and (parcel["body"]["attempt"], parcel["body"]["round"]) == (0, 0):
            offer = Offer.from_json({**body["message"]["body"], "key_id": other.key_id})
            keys = {"hospital-c": rig.keys["hospital-c"].public.sealing}
            ref, data = seal_to_bytes([other.public], keys, key_context(offer))
            await rig.payloads("hospital-a").put(data, ref, ("hospital-c",))
            forged = {**body, "message": {"kind": offer.KIND, "body": offer.to_json()}, "public_key": ref.to_json()}
            signed = sign_statement(
                rig.keys["hospital-a"], kind="secagg", consortium="oncology", issuer="hospital-a", body=forged
            )
            second.append(offer.digest)
            await real(sender, kind, statement, ("hospital-b",), run, inline)
            await real(sender, kind, signed, ("hospital-c",), run, inline)
            return
        await real(sender, kind, statement, receivers, run, inline)

    rig.board.relay = relay
    finished = await rig.finish(run)
    assert second, "the lead said two things"
    said = [Statement.from_bytes(body).body for kind, body in rig.board.seen if kind == "secagg"]
    first = {each["round_key"] for each in said if each["message"]["kind"] == "secagg.offer"}
    uploaded = {each["round_key"] for each in said if each["message"]["kind"] == "secagg.commitment"}
    assert len(first - uploaded) == 1, "nothing was encrypted under the first key"
    assert other.key_id not in uploaded
    codes = {each["message"]["body"]["code"] for each in said if each["message"]["kind"] == "secagg.abort"}
    assert "ROSTER_MISMATCH" in codes
    assert finished["state"] == "COMPLETED", "the next attempt is an honest one"


async def test_a_lost_party_is_left_out_under_a_fresh_key(rig, make_app, monkeypatch):
    """Four would be needed to lose one under `lead-key`; three parties cannot spare any: the question fails by name."""
    monkeypatch.setattr("comity_node.training.questions.GONE_S", 0.3)
    _, run = asked(rig, make_app(), terms={"min_participants": 2})
    await rig.until(lambda: any(b'"secagg.ready"' in body for kind, body in rig.board.seen if kind == "secagg"))
    await rig.nodes["hospital-c"].down()
    finished = await rig.finish(run)
    assert finished["state"] == "FAILED"
    dropped = {each["org"]: each["code"] for each in finished["manifest"][0]["dropped"]}
    assert dropped == {
        "hospital-a": "PARTICIPANTS_TOO_FEW",
        "hospital-b": "PARTICIPANTS_TOO_FEW",
        "hospital-c": "UNAVAILABLE",
    }


async def test_two_parties_are_too_few_and_never_ready(rig, make_app):
    _, run = asked(rig, make_app(), parties=("hospital-a", "hospital-b"))
    page = []

    async def told():
        page[:] = await rig.nodes["hospital-a"].service.events.page(run)
        return any(event.kind == "unready" for event in page)

    for _ in range(200):
        if await told():
            break
        await asyncio.sleep(0.02)
    assert page[-1].body["error"]["code"] == "PARTICIPANTS_TOO_FEW"


async def test_a_confirmed_part_leaves_no_file(rig, make_app):
    rig.board.auto_close = False
    _, run = asked(rig, make_app())
    assert (await rig.finish(run))["state"] == "COMPLETED"
    for node in rig.nodes.values():
        await rig.until(lambda node=node: not list((node.home / "payloads").glob("sum-*")))
        await rig.until(lambda node=node: node.read(lambda conn: store.find_order(conn, run, 1)).acked)
        assert not node.read(lambda conn: sum_store.files_of(conn, run))
