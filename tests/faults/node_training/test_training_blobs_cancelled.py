"""Readers of payloads that are cancelled while a thread works for them: no descriptor stays open, none closes early."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from comity_crypto.keys import OrgKeys
from comity_node.training import blobs

KEYS = OrgKeys.generate()
SIZE = 1_500_000
OPEN = Path("/proc/self/fd")


@pytest.fixture
async def sealed(tmp_path):
    blob = blobs.from_bytes(b"x" * SIZE)
    yield await blobs.seal(blob, tmp_path, {"hospital-a": KEYS.public.sealing}, b"c", fsync=False)
    blob.close()


async def stream(sealed, folder):
    async def chunks():
        data = (folder / sealed.file).read_bytes()
        for start in range(0, len(data), 512 * 1024):
            yield data[start : start + 512 * 1024]

    return await blobs.open_stream(KEYS, "hospital-a", sealed.ref, b"c", chunks(), size_max=SIZE, keep=folder / "kept")


async def here(sealed, folder):
    return await blobs.open_sealed(KEYS, "hospital-a", sealed, b"c", folder, size_max=SIZE)


def slowed(monkeypatch, begun):
    """Let every writing of a blob take its time, and remember the descriptors that were wrong."""
    write_all, wrong, loop = blobs.write_all, [], asyncio.get_running_loop()

    def slow(fd, data):
        loop.call_soon_threadsafe(begun.set)
        time.sleep(0.05)
        try:
            write_all(fd, data)
        except OSError as error:
            wrong.append(error)
            raise

    monkeypatch.setattr(blobs, "write_all", slow)
    return wrong


@pytest.mark.parametrize("reader", [stream, here])
@pytest.mark.parametrize("pause_s", [0.0, 0.06, 0.11])
async def test_a_cancelled_reader_leaves_nothing_open(sealed, tmp_path, monkeypatch, reader, pause_s):
    begun = asyncio.Event()
    wrong = slowed(monkeypatch, begun)
    files, before = sorted(tmp_path.iterdir()), len(list(OPEN.iterdir()))
    reading = asyncio.create_task(reader(sealed, tmp_path))
    await begun.wait()
    await asyncio.sleep(pause_s)
    assert reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert wrong == []
    with contextlib.suppress(FileNotFoundError):
        (tmp_path / "kept").unlink()  # whole, if it is there at all
    assert sorted(tmp_path.iterdir()) == files
    assert len(list(OPEN.iterdir())) == before
