"""Pure rules of the edge: tokens, certificates, queues, errors over gRPC, settings."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from comity.wire import instants
from comity.wire.catalog import CATALOG
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.grpc_errors import TRAILER, abort, from_rpc
from comity_coordinator import setup
from comity_coordinator.membership.model import Presented, Standing, Token, judge_certificate, judge_token
from comity_coordinator.settings import CoordinatorSettings, split_address
from comity_coordinator.transport.session import HubLimits, SendQueue
from comity_crypto import x509

NOW = instants.parse("2026-01-01T00:00:00Z")
TOKEN = Token("join-1", "alpha", "coordinator", "f" * 64, instants.to_text(NOW + timedelta(hours=1)))


def _judge(token: Token | None = TOKEN, **changes: Any) -> bytes | None:
    values: dict[str, Any] = {"org": "alpha", "fingerprint": "f" * 64, "request_digest": "d" * 64, "now": NOW}
    return judge_token(token, **{**values, **changes})


def test_token_rules() -> None:
    assert _judge() is None
    used = Token("join-1", "alpha", "coordinator", "f" * 64, TOKEN.expires_at, "d" * 64, b"PEM")
    assert _judge(used) == b"PEM"
    for token, changes, code in (
        (None, {}, "TOKEN_INVALID"),
        (TOKEN, {"fingerprint": "e" * 64}, "TOKEN_INVALID"),
        (TOKEN, {"org": "beta"}, "TOKEN_INVALID"),
        (TOKEN, {"now": NOW + timedelta(hours=1)}, "TOKEN_EXPIRED"),
        (used, {"request_digest": "0" * 64}, "TOKEN_USED"),
        (used, {"now": NOW + timedelta(hours=2)}, "TOKEN_EXPIRED"),
    ):
        with pytest.raises(ComityError, match=code):
            _judge(token, **changes)


def test_certificate_rules() -> None:
    assert judge_certificate(Standing("a1", None, False), "a1") is Presented.CURRENT
    assert judge_certificate(Standing("a1", "b2", False), "b2") is Presented.NEXT
    for standing, serial, code in (
        (None, "a1", "NOT_A_MEMBER"),
        (Standing("a1", "b2", True), "a1", "REVOKED"),
        (Standing("b2", None, False), "a1", "CERTIFICATE_INVALID"),
    ):
        with pytest.raises(ComityError, match=code):
            judge_certificate(standing, serial)


async def test_send_queue_is_bounded_by_bytes_and_frames() -> None:
    queue = SendQueue(HubLimits(queue_frames=3, queue_bytes=100, control_frames=2))
    assert queue.offer(bytes(500)), "an empty queue takes any frame"
    assert not queue.offer(b"x")
    assert len(await queue.get()) == 500
    assert [queue.offer(bytes(50)), queue.offer(bytes(50)), queue.offer(b"")] == [True, True, True]
    assert not queue.offer(b"")
    queue.control(b"c")
    queue.control(b"c")
    with pytest.raises(ComityError, match="BUSY"):
        queue.control(b"c")


class _AbortedError(Exception):
    pass


class _Context:
    async def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Any = ()) -> None:
        self.error = grpc.aio.AioRpcError(
            code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing_metadata), details=details
        )
        raise _AbortedError


@pytest.mark.parametrize("code", list(ErrorCode))
async def test_every_error_crosses_grpc_unchanged(code: ErrorCode) -> None:
    context = _Context()
    with pytest.raises(_AbortedError):
        await abort(context, ComityError(code, "why", limit=7, name="x"))
    assert context.error.code().name == CATALOG[code].grpc
    assert context.error.details() == CATALOG[code].sentence
    back = from_rpc(context.error)
    assert (back.code, back.detail, back.facts) == (code, "why", {"limit": 7, "name": "x"})


def test_foreign_errors_become_catalogue_errors() -> None:
    def rpc(code: grpc.StatusCode, *trailers: Any) -> grpc.aio.AioRpcError:
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers))

    assert from_rpc(rpc(grpc.StatusCode.UNAVAILABLE)).code is ErrorCode.UNAVAILABLE
    assert from_rpc(rpc(grpc.StatusCode.DATA_LOSS)).code is ErrorCode.INTERNAL
    for data in (b"not json", b"[" * 3000, b'{"code":"NO_SUCH"}', b"x" * 5000):
        assert from_rpc(rpc(grpc.StatusCode.INTERNAL, (TRAILER, data))).code is ErrorCode.INTERNAL


async def test_a_server_of_another_authority_is_named() -> None:
    (key, certificate), (_, trusted) = x509.create_authority("demo"), x509.create_authority("demo")
    pair = x509.issue_server(key, certificate, "demo", ["localhost"], ["127.0.0.1"])
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    try:
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(trusted)) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary("/any/Thing")(b"", timeout=10)
        assert from_rpc(refused.value).code is ErrorCode.CERTIFICATE_INVALID
    finally:
        await server.stop(None)


def test_settings_round_trip_and_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = setup.new_settings(tmp_path / "home", "demo", "coordinator.example:7443", workflows="timers")
    assert made.listen == "0.0.0.0:7443"
    assert setup.new_settings(tmp_path, "demo", "127.0.0.1:7443").listen == "127.0.0.1:7443"
    assert split_address("[::1]:7443") == ("::1", "7443")
    setup.create(made)
    loaded = CoordinatorSettings.load(tmp_path / "home")
    assert loaded == made
    for secret in ("api.token", "coordinator.json"):
        assert (tmp_path / "home" / secret).stat().st_mode & 0o077 == 0
    with pytest.raises(ComityError, match="CONFLICT"):
        setup.create(made)
    monkeypatch.setenv("COMITY_COORDINATOR_LISTEN", "127.0.0.1:9")
    assert CoordinatorSettings.load(tmp_path / "home").listen == "127.0.0.1:9"
    with pytest.raises(ComityError, match="NOT_FOUND"):
        CoordinatorSettings.load(tmp_path / "nowhere")
    file = tmp_path / "home" / "coordinator.json"
    good = json.loads(file.read_text())
    for text in ("{", "[]", json.dumps({**good, "surprise": 1}), json.dumps({**good, "address": "no-port"})):
        file.write_text(text)
        with pytest.raises(ComityError, match="MALFORMED"):
            CoordinatorSettings.load(tmp_path / "home")
    for consortium, address in (("Bad Name", "a:1"), ("demo", "nothing"), ("demo", "a:99999")):
        with pytest.raises(ComityError, match="MALFORMED"):
            setup.new_settings(tmp_path, consortium, address)


def test_one_process_for_each_folder(tmp_path: Path) -> None:
    with setup.sole_process(tmp_path), pytest.raises(ComityError, match="CONFLICT"), setup.sole_process(tmp_path):
        pass
    with setup.sole_process(tmp_path):
        pass


async def test_no_sender_takes_all_the_room_of_another_node() -> None:
    queue = SendQueue(HubLimits(queue_frames=8, queue_bytes=100, sender_share=2))
    assert [queue.offer(b"x", "flooder") for _ in range(6)] == [True] * 4 + [False] * 2
    assert queue.offer(b"y", "lead")
    assert await queue.get() == b"x"
    assert queue.offer(b"x", "flooder")  # what was sent makes room again
    assert not queue.offer(b"x", "flooder")
    large = SendQueue(HubLimits(queue_frames=8, queue_bytes=100, sender_share=2))
    assert large.offer(b"x" * 80, "lead")  # one frame always passes
    assert not large.offer(b"x", "lead")
    assert large.offer(b"x" * 20, "other")
