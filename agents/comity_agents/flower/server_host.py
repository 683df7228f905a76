"""`python -m comity_agents.flower.server_host DESCRIPTOR`: the process of an unmodified ServerApp at the lead's node.

Runs the app once over `ChannelGrid`, sends its result and waits for the node to close the channel. The frames stand in
`workers.py`. An app that asks nothing, or whose questions get too few results, fails; it never "completes" with its
initial model.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from flwr.app import Context, RecordDict

from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_agents.channel import Channel
from comity_agents.flower.capture import Recorder, install
from comity_agents.flower.compat import SERVER_NODE_ID, set_identity
from comity_agents.flower.grid import ChannelGrid, RunEndedError
from comity_agents.flower.host import load, open_channel, report, seed
from comity_agents.flower.records import content_of
from comity_agents.flower.strategies import StrategyRefusedError, check_sums


def main() -> None:
    """Run the app, report its end, and stay until the node has read it."""
    channel, setup = open_channel(sys.argv[1:])
    try:
        _serve(channel, setup)
    except ComityError as error:
        channel.send({"op": "failed", "code": str(error.code)})
    with contextlib.suppress(ComityError):
        channel.recv(None)


def _serve(channel: Channel, setup: dict[str, Any]) -> None:
    run_id = int(setup["run_id"])
    set_identity(run_id, SERVER_NODE_ID)
    recorder = Recorder(channel.send, check_sums if setup.get("sums") else None)
    install(recorder)
    app, run_config = load(setup, "serverapp")
    grid = ChannelGrid(channel, run_id, setup["node_ids"], int(setup["results_min"]), recorder)
    context = Context(run_id, SERVER_NODE_ID, {}, RecordDict(), run_config)
    channel.send({"op": "ready"})
    seed(setup["seed"], "run")
    try:
        app(grid, context)
    except StrategyRefusedError as error:
        report("the strategy cannot work on sums")
        channel.send({"op": "failed", "code": str(ErrorCode.STRATEGY_REFUSED), "reason": error.reason})
        return
    except RunEndedError as error:
        report("the run cannot go on")
        raise ComityError(error.code) from error
    except (Exception, SystemExit) as error:  # a stranger's function may raise anything
        report("the ServerApp raised")
        raise ComityError(grid.failure or ErrorCode.APP_FAILED) from error
    if grid.failure is not None:
        raise ComityError(grid.failure)
    if grid.questions == 0:
        raise ComityError(ErrorCode.APP_SILENT, "the ServerApp asked nothing")
    _finish(channel, grid, recorder)


def _finish(channel: Channel, grid: ChannelGrid, recorder: Recorder) -> None:
    header = {
        "op": "finished",
        "source": recorder.source,
        "questions": grid.questions,
        "rounds": recorder.rows(),
        "timings": grid.timings,
    }
    if recorder.source == "none":
        channel.send(header)
        return
    fd, size_bytes = memory.write_parts(content_of(RecordDict({"arrays": recorder.arrays})).parts())
    try:
        channel.send(header, fd, size_bytes)
    finally:
        os.close(fd)


if __name__ == "__main__":
    main()
