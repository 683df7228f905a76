"""Unmodified Flower strategies get the model, the metrics and the counts of `plain`, up to the stated rounding.

The bound is computed. For FedAvg it is `sum_form.mean_error` for each round. For FedAdam, whose step is not linear, the
mean's error goes through its two moments as intervals: both models lie in the interval of each coordinate.
"""

from __future__ import annotations

import numpy as np
import pytest

from comity_crypto.secagg.bfv import encoder
from comity_crypto.secagg.masked import encoder as masked_encoder
from comity_node.training.profiles import sum_form

ROUNDS, PARAMS = 2, 2_000
WEIGHT_MAX, CLIP = 100, 60.0
EXAMPLES = (10, 20, 30)
WEIGHTS = [each / WEIGHT_MAX for each in EXAMPLES]
LEVELS = {"lead-key": encoder.LEVELS, "threshold": encoder.LEVELS, "masked": masked_encoder.LEVELS}
X = np.linspace(-1, 1, PARAMS, dtype=np.float32)
PARTS = np.stack([np.random.default_rng(place).standard_normal(PARAMS).astype(np.float32) for place in range(3)])
MEAN = np.average(PARTS.astype(np.float64), axis=0, weights=EXAMPLES)
# What float32 rounds in a party's reply and in the model, each at most half a step of the largest value.
FLOAT = 2 * ROUNDS * float(np.spacing(np.float32(np.abs(X).max() + ROUNDS * np.abs(PARTS).max())))
ADAM = {"eta": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.001}
STRATEGIES = {"fedavg": "flower.FedAvg(train_metrics_aggr_fn=counted)"}
STRATEGIES["fedadam"] = (
    f"flower.FedAdam(train_metrics_aggr_fn=counted, {', '.join(f'{k}={v}' for k, v in ADAM.items())})"
)
COUNTED = """
def counted(contents, key):
    rows = [each["metrics"] for each in contents]
    total = sum(row["num-examples"] for row in rows)
    loss = sum(row["num-examples"] * row["train_loss"] for row in rows) / total
    return MetricRecord({"train_loss": loss, "examples": total})
"""


def mean_error(profile):
    """How far one round's mean may be from that of `plain`, in any coordinate."""
    spread = float(np.abs(PARTS - MEAN).max())
    return sum_form.mean_error(8 * CLIP / PARAMS**0.5, LEVELS[profile], WEIGHTS, spread) + FLOAT


def fedavg(error):
    return X + ROUNDS * (MEAN - error), X + ROUNDS * (MEAN + error)


def fedadam(error):
    """The lowest and highest model of means within `error` of the exact one, by interval arithmetic."""
    low, high = MEAN - error, MEAN + error
    squares = np.where((low < 0) & (high > 0), 0, np.minimum(low**2, high**2)), np.maximum(low**2, high**2)
    first, second, model = [0 * MEAN, 0 * MEAN], [0 * MEAN, 0 * MEAN], [X.astype(np.float64), X.astype(np.float64)]
    for number in range(1, ROUNDS + 1):
        first = [ADAM["beta_1"] * m + (1 - ADAM["beta_1"]) * d for m, d in zip(first, (low, high), strict=True)]
        second = [ADAM["beta_2"] * v + (1 - ADAM["beta_2"]) * d for v, d in zip(second, squares, strict=True)]
        rate = ADAM["eta"] * (1 - ADAM["beta_2"] ** (number + 1)) ** 0.5 / (1 - ADAM["beta_1"] ** (number + 1))
        steps = [rate * m / (np.sqrt(v) + ADAM["tau"]) for m in first for v in second]
        model = [model[0] + np.min(steps, axis=0), model[1] + np.max(steps, axis=0)]
    return model[0] - FLOAT, model[1] + FLOAT


BOUNDS = {"fedavg": fedavg, "fedadam": fedadam}


async def trained(rig, app, profile):
    config = {"params": PARAMS, "num-server-rounds": ROUNDS, "differ": 0}
    terms = {"aggregation": profile, "weight_max": WEIGHT_MAX, "clip_norm": str(CLIP)}
    if profile == "plain":
        agreement = type(rig).__mro__[1].agree(rig, app, rounds=ROUNDS, config=config)
    else:
        agreement = rig.agree(app, rounds=ROUNDS, config=config, terms=terms)
    run = rig.board.prepare(agreement)
    assert (await rig.finish(run))["state"] == "COMPLETED"
    await rig.until((rig.result("hospital-b", run) / "card.json").exists)
    with np.load(rig.result("hospital-b", run) / "model.npz") as arrays:
        model = arrays[arrays.files[0]]
    page = await rig.nodes["hospital-a"].service.events.page(run)
    told = {(each.body["round"], each.body["stage"]): each.body["metrics"] for each in page if each.kind == "metrics"}
    return model, told


_plain = {}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "profile",
    ["threshold", pytest.param("masked", marks=pytest.mark.slow), pytest.param("lead-key", marks=pytest.mark.slow)],
)
async def test_a_sum_gives_the_model_of_plain(rig, make_app, strategy, profile):
    app = make_app(STRATEGIES[strategy])
    server = app / "dummy" / "server_app.py"
    text = server.read_text().replace("ArrayRecord, Context", "ArrayRecord, Context, MetricRecord")
    server.write_text(text.replace("app = ServerApp()", COUNTED + "app = ServerApp()"))
    if strategy not in _plain:
        _plain[strategy] = await trained(rig, app, "plain")
    (plain, told), (model, summed) = _plain[strategy], await trained(rig, app, profile)
    low, high = BOUNDS[strategy](mean_error(profile))
    for found in (plain, model):
        assert (found >= low).all()
        assert (found <= high).all()
    assert (np.abs(model.astype(np.float64) - plain) <= high - low).all()
    assert np.abs(plain - X).max() > 20 * np.median(high - low), "a bound that means something"
    weights = sum_form.mean_error(0.0, 1, WEIGHTS, spread=2.0)
    for number in range(1, ROUNDS + 1):
        assert summed[number, "train"]["examples"] == told[number, "train"]["examples"] == sum(EXAMPLES)
        assert abs(summed[number, "train"]["train_loss"] - told[number, "train"]["train_loss"]) <= weights + 2.0**-39
        for name, value in told[number, "evaluate"].items():  # equal weights: nothing but the fixed point is rounded
            assert summed[number, "evaluate"][name] == pytest.approx(value, abs=2.0**-39)
