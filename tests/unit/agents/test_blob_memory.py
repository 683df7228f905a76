"""Sealed blobs: what `adopt` lets in, and that a blob cannot change afterwards."""

from __future__ import annotations

import mmap
import os

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no sealed memory files")


def test_parts_are_written_one_behind_the_other():
    parts = [b"a" * 10, bytearray(b""), memoryview(b"bc"), *([b"x"] * 600)]
    fd, size = memory.write_parts(parts)
    with memory.mapped(fd, size) as view:
        assert bytes(view) == b"".join(bytes(part) for part in parts)
    os.close(fd)


def test_a_sealed_blob_can_neither_grow_nor_shrink_nor_change():
    fd, size = memory.write_parts([b"secret"])
    for change in (
        lambda: os.pwrite(fd, b"x", 0),
        lambda: os.ftruncate(fd, 0),
        lambda: os.ftruncate(fd, 100),
        lambda: mmap.mmap(fd, size, prot=mmap.PROT_READ | mmap.PROT_WRITE),
    ):
        with pytest.raises((PermissionError, OSError)):
            change()
    os.close(fd)


def test_adopt_takes_a_sealed_blob_and_an_unsealed_one_that_nobody_maps():
    fd, size = memory.write_parts([b"12345"])
    assert memory.adopt(fd, size, 5) == fd
    os.close(fd)
    unsealed = memory.create()
    os.write(unsealed, b"12345")
    assert memory.adopt(unsealed, 5, 5) == unsealed
    with pytest.raises(PermissionError):
        os.pwrite(unsealed, b"x", 0)
    os.close(unsealed)


def test_adopt_refuses_a_blob_that_its_sender_still_maps_writable():
    fd = memory.create()
    os.write(fd, b"12345")
    with mmap.mmap(fd, 5) as region:
        _refused(os.dup(fd), 5, 5, ErrorCode.MALFORMED)
        region[0:1] = b"x"
    os.close(fd)


def test_adopt_refuses_other_sizes_other_files_and_closes_them(tmp_path):
    fd, size = memory.write_parts([b"12345"])
    _refused(os.dup(fd), size + 1, 100, ErrorCode.MALFORMED)
    _refused(os.dup(fd), size - 1, 100, ErrorCode.MALFORMED)
    _refused(fd, size, size - 1, ErrorCode.TOO_LARGE)
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    _refused(os.open(path, os.O_RDWR), 5, 5, ErrorCode.MALFORMED)
    reader, writer = os.pipe()
    _refused(reader, 5, 5, ErrorCode.MALFORMED)
    os.close(writer)


def _refused(fd: int, size: int, limit: int, code: ErrorCode) -> None:
    with pytest.raises(ComityError) as caught:
        memory.adopt(fd, size, limit)
    assert caught.value.code is code
    with pytest.raises(OSError):
        os.fstat(fd)
