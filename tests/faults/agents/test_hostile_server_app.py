"""A ServerApp that breaks rules or gets too little: the run fails by name, it never completes with nothing."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_agents.flower.codec import Content, Record, array_entry
from comity_agents.flower.workers import Ask, Failed, Finished


def reply_parts(value: float) -> list:
    arrays = Record("arrays", "array", (array_entry("0", np.full(4, value, np.float32)),))
    return Content((arrays, Record("metrics", "metric", (("num-examples", 1), ("loss", value))))).parts()


async def play(process, failing: dict[int, ErrorCode] | None = None) -> list:
    """Answer every question; nodes in `failing` answer with that error. Returns the events."""
    await process.start()
    events = []
    async for event in process.events():
        events.append(event)
        if isinstance(event, Ask):
            for node in reversed(event.dst):
                if failing and node in failing:
                    await process.send_reply(event.seq, node, error=ComityError(failing[node]))
                    continue
                fd, size = memory.write_parts(reply_parts(node))
                await process.send_reply(event.seq, node, fd, size)
                os.close(fd)
            event.close()
        if isinstance(event, Finished) and event.fd is not None:
            os.close(event.fd)
    return events


async def test_one_content_for_all_is_one_question_and_ends_with_its_result(server_for):
    events = await play(server_for("fine"))
    asks = [event for event in events if isinstance(event, Ask)]
    assert [(ask.seq, ask.dst, ask.type) for ask in asks] == [(0, (10, 20, 30), "train")]
    assert isinstance(events[-1], Finished)
    assert events[-1].source == "outgoing"
    assert events[-1].rounds[0].train == {"loss": 20.0}


async def test_distinct_contents_are_distinct_questions(server_for):
    events = await play(server_for("distinct"))
    asks = [(ask.seq, ask.dst) for ask in events if isinstance(ask, Ask)]
    assert asks == [(0, (20, 30)), (1, (10,)), (2, (10, 20, 30))]


async def test_an_app_may_poll(server_for):
    assert isinstance((await play(server_for("poll")))[-1], Finished)


@pytest.mark.parametrize(
    ("mode", "code"),
    [("silent", ErrorCode.APP_SILENT), ("raise", ErrorCode.APP_FAILED), ("stranger", ErrorCode.APP_FAILED)],
)
async def test_an_app_that_asks_nothing_raises_or_names_a_stranger_fails(server_for, mode, code):
    (event,) = await play(server_for(mode))
    assert isinstance(event, Failed)
    assert event.error.code is code
    assert "SECRET" not in str(event.error.to_json())


@pytest.mark.parametrize("mode", ["fine", "swallow", "poll"])
@pytest.mark.parametrize(
    ("failing", "results_min", "code"),
    [
        (dict.fromkeys((10, 20, 30), ErrorCode.APP_FAILED), 1, ErrorCode.APP_FAILED),
        (dict.fromkeys((10, 20, 30), ErrorCode.APP_SILENT), 1, ErrorCode.APP_SILENT),
        (dict.fromkeys((10, 20, 30), ErrorCode.POLICY_DENIED), 1, ErrorCode.PARTICIPANTS_TOO_FEW),
        ({10: ErrorCode.WORKER_DIED}, 3, ErrorCode.PARTICIPANTS_TOO_FEW),
        ({10: ErrorCode.WORKER_DIED, 30: ErrorCode.APP_FAILED}, 1, None),
    ],
)
async def test_too_few_results_end_the_run_even_if_swallowed(server_for, mode, failing, results_min, code):
    event = (await play(server_for(mode, results_min=results_min), failing))[-1]
    if code is None:
        assert isinstance(event, Finished)
    else:
        assert isinstance(event, Failed)
        assert event.error.code is code


async def test_a_server_app_that_is_killed_is_noticed(server_for):
    process = server_for("fine")
    await process.start()
    events = process.events()
    (await anext(events)).close()
    os.killpg(process.pid, signal.SIGKILL)
    with pytest.raises(ComityError) as caught:
        await anext(events)
    assert caught.value.code is ErrorCode.WORKER_DIED
    assert not process.alive


async def test_a_server_app_that_is_silent_too_long_is_closed(server_for):
    process = server_for("fine", silence_s_max=0.3)
    await process.start()
    events = process.events()
    (await anext(events)).close()  # and never answered
    with pytest.raises(ComityError) as caught:
        await anext(events)
    assert caught.value.code is ErrorCode.WORKER_TIMEOUT


async def test_an_app_that_does_not_import_is_named_invalid(server_for, bad_app):
    (bad_app / "server.py").write_text("import nothing_of_this_name")
    with pytest.raises(ComityError) as caught:
        await server_for("fine").start()
    assert caught.value.code is ErrorCode.APP_INVALID
