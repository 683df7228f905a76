"""One step: every number of the model moves by an amount that follows from it, from the data and from the round.

All amounts are even integers below 1000 and the weights are 4, 2 and 2, so that the weighted mean is exact in binary
whatever the order of summation. Each execution is told to the log with the order's digest, so that a test can count.
"""

import csv
import hashlib
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
WEIGHTS = (4, 2, 2)


def _total(context: Context) -> int:
    with Path(context.node_config["dataset.numbers"]).open(newline="") as file:
        return sum(int(row["value"]) for row in csv.DictReader(file))


def _say(word: str, message: Message, *more: str) -> None:
    print("tally", word, message.metadata.message_id, f"{time.time():.6f}", *more, flush=True)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Take one step."""
    _say("begin", message)
    config, total = context.run_config, _total(context)
    place = int(context.node_config["partition-id"])
    now = int(message.content["config"]["server-round"])
    arrays = []
    for array in message.content["arrays"].to_numpy_ndarrays():
        exact = np.round(array * 2**20).astype(np.int64)
        steps = (exact * 31 + total * 7 + np.arange(array.size) * 13 + now * 101 + int(config["seed"])) % 500 * 2 - 500
        arrays.append(array + steps)
    time.sleep(int(config["pause-ms"]) / 1000)
    chance = np.random.random(4)  # seeded by the host: a second execution must draw the same
    result = hashlib.sha256(b"".join(array.tobytes() for array in [*arrays, chance])).hexdigest()
    reply = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": WEIGHTS[place]})}
    _say("end", message, result)
    return Message(RecordDict(reply), reply_to=message)
