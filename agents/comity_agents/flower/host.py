"""What both hosts do at start: take the channel and the settings, make randomness repeatable, import the app's part."""

from __future__ import annotations

import hashlib
import importlib
import logging
import random
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from comity.wire.errors import ComityError, ErrorCode
from comity_agents.channel import Channel
from comity_agents.flower.bundle import Manifest, fuse_config, read_manifest
from comity_agents.flower.compat import speed_up_arrays

_SETUP_TIMEOUT_S = 60.0


def open_channel(arguments: list[str]) -> tuple[Channel, dict[str, Any]]:
    """Return the channel on the inherited descriptor and the node's first frame."""
    if len(arguments) != 1 or not arguments[0].isdigit():
        raise SystemExit("usage: python -m MODULE DESCRIPTOR (started by a node)")
    sock = socket.socket(fileno=int(arguments[0]))
    sock.set_inheritable(False)
    channel = Channel(sock)
    frame = channel.recv(_SETUP_TIMEOUT_S)
    if frame.header.get("op") != "setup" or frame.fd is not None:
        raise SystemExit("the node started with another frame than `setup`")
    return channel, frame.header


def load(setup: dict[str, Any], component: str) -> tuple[Any, dict[str, Any]]:
    """Import the app's `serverapp` or `clientapp`; returns it and the fused run config.

    Raises:
        ComityError: `APP_INVALID`; the reason's text goes to the log only.
    """
    logging.captureWarnings(True)
    folder = Path(setup["app_dir"])
    manifest = read_manifest(folder)
    config = fuse_config(manifest.config, setup["run_config"])
    module, _, name = (manifest.serverapp if component == "serverapp" else manifest.clientapp).partition(":")
    if _uses_torch(manifest):
        importlib.import_module("torch")  # before the seeds: weights made while the app is imported must repeat
    speed_up_arrays()
    seed(setup["seed"], "import")
    sys.path.insert(0, str(folder))
    try:
        app = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # a stranger's module may raise anything while imported
        report(f"the {component} cannot be imported")
        raise ComityError(ErrorCode.APP_INVALID, "the app cannot be imported") from error
    if not callable(app):
        report(f"{module}:{name} is not an app")
        raise ComityError(ErrorCode.APP_INVALID, "the project file names something that is no app")
    return app, config


def seed(*parts: object) -> None:
    """Seed `random`, numpy and torch (if the app has imported it) from `parts`."""
    digest = hashlib.sha256("\x00".join(str(part) for part in parts).encode()).digest()
    number = int.from_bytes(digest[:8], "big")
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)  # the app's own code uses the global generator
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(number >> 1)


def report(text: str) -> None:
    """Write `text` and the present exception to the owner's log; nothing of it crosses the channel."""
    print(f"comity: {text}", file=sys.stderr)
    traceback.print_exc()


def _uses_torch(manifest: Manifest) -> bool:
    return any(requirement.lower().startswith("torch") for requirement in manifest.dependencies)
