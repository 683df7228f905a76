"""The only private parts of flwr that we touch, both guarded by tests against the installed version.

1. Task identity: `Message` reads the run's and the node's number from a class that Flower's own processes fill.
2. Message id: Flower's transport sets it after construction; here it is deterministic.
Everything else goes through `flwr.app`, `flwr.clientapp` and `flwr.serverapp`.
"""

from __future__ import annotations

from typing import Any

from flwr.supercore.task_identity import TaskIdentity

# Flower's number of the server side, seen by apps as the sender of each message.
SERVER_NODE_ID = 1


def set_identity(run_id: int, node_id: int) -> None:
    """Say in whose name messages are made from now on in this process."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id
    TaskIdentity.task_id = 1


def set_message_id(message: Any, message_id: str) -> None:
    """Give a message its id; replies name it."""
    message.metadata.__dict__["_message_id"] = message_id
