"""Answers as a good app does, or misbehaves at the organisation with partition 1 (hospital-b) in one of many ways."""

import os
import socket
import sys
import time

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
SECRET = "row 17 of the patients"


def _garbage() -> None:
    """Write noise where the answer is expected: into the very channel to the node."""
    for fd in range(3, 256):
        try:
            with socket.socket(fileno=os.dup(fd)) as channel:
                channel.send(os.urandom(64))
        except OSError:
            continue
    time.sleep(60)


def _arrays(message: Message, mode: str) -> ArrayRecord:
    arrays = [array + 1 for array in message.content["arrays"].to_numpy_ndarrays()]
    if mode == "large":
        arrays = [np.zeros(int(5e6), np.float32)]
    return ArrayRecord(arrays)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round."""
    mode = str(context.run_config["mode"]) if context.node_config["partition-id"] == 1 else "good"
    if mode == "raises":
        raise ValueError(SECRET)
    if mode == "nothing":
        return None
    if mode == "dies":
        os._exit(3)
    if mode == "exits":
        sys.exit(SECRET)
    if mode == "late":
        time.sleep(60)
    if mode == "garbage":
        _garbage()
    metrics = MetricRecord({"num-examples": 1})
    content = RecordDict({"arrays": _arrays(message, mode), "metrics": metrics})
    if mode == "text":
        content["notes"] = ConfigRecord({"note": SECRET})
    return Message(content, reply_to=message)
