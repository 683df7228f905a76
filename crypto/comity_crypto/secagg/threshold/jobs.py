"""Jobs of `threshold` in a worker process: the parts of a ceremony, decryption shares, the fused sum (`worker_main`).

1. Files are handed over open; each has one exact size, checked before it is read: every other one is refused.
2. Secrets stay in files that the caller made (memory, or 0600) and in this process for the time of one job.
3. A batch's files hold its keys one after the other. Shares and sums go chunk by chunk, 16 at a time.

    draw     writes b_i of every key (public) and s_i (secret)
    combine  all holders' b_i -> the packed public keys and their ids
    deal     s_i -> for each holder, what its box will hold
    gather   all dealers' boxes, opened -> S_k of every key, and the values of the check
    share    S_k, aggregate -> decryption share       fuse   aggregate, shares -> summed slots
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv import scheme as bfv
from comity_crypto.secagg.bfv.blobs import read_chunk, write_chunk
from comity_crypto.secagg.bfv.params import KEY_LIMBS, LIMBS, Parameters
from comity_crypto.secagg.bfv.residues import pack_poly, unpack_poly
from comity_crypto.secagg.bfv.ring import Ints
from comity_crypto.secagg.frame.blobs import BlobKind
from comity_crypto.secagg.frame.naming import naming
from comity_crypto.secagg.threshold import keys, shares

Json = dict[str, Any]
Indices = Callable[[Json], Iterable[int]]
BLOCK_CHUNKS = 16


def read_pieces(fd: int, size_bytes: int, count: int, **facts: int) -> list[bytes]:
    """Return `count` pieces of one size that fill a whole file. Raises `CIPHERTEXT_INVALID` for another size."""
    if os.fstat(fd).st_size != size_bytes * count:
        raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "a file of a ceremony has another size", **facts)
    return [os.pread(fd, size_bytes, index * size_bytes) for index in range(count)]


def draw(parameters: Parameters, request: Json, fds: list[int]) -> Json:
    """Draw a part of every key; the error is of no more use and is not kept."""
    public, secret = fds
    crs = bytes.fromhex(request["crs"])
    for index in range(request["keys"]):
        part = keys.draw_part(parameters, os.urandom(keys.ENTROPY_BYTES))
        shown = keys.public_share(parameters, keys.common_poly(parameters, crs, index), part)
        os.pwrite(public, pack_poly(shown), index * parameters.poly_bytes(KEY_LIMBS))
        os.pwrite(secret, pack_poly(part.secret[:LIMBS]), index * parameters.poly_bytes(LIMBS))
    return {}


def combine(parameters: Parameters, request: Json, fds: list[int]) -> Json:
    """Add all holders' public shares. A file that is none is refused with its `holder`'s place, from 0."""
    *sources, target = fds
    size_bytes, count = parameters.poly_bytes(KEY_LIMBS), request["keys"]
    shown = [read_pieces(fd, size_bytes, count, holder=place) for place, fd in enumerate(sources)]
    ids = []
    for index in range(count):
        rows = [_poly(parameters, pieces[index], KEY_LIMBS, place) for place, pieces in enumerate(shown)]
        public = keys.collective_key(
            parameters, keys.common_poly(parameters, bytes.fromhex(request["crs"]), index), rows
        )
        os.pwrite(target, public, index * parameters.key_bytes)
        ids.append(hashlib.sha256(public).hexdigest())
    return {"keys": ids}


def deal(parameters: Parameters, request: Json, fds: list[int]) -> Json:
    """Share every key's s_i among the holders, in the order of `fds`."""
    secret, *targets = fds
    size_bytes = keys.dealt_bytes(parameters)
    for index, piece in enumerate(read_pieces(secret, parameters.poly_bytes(LIMBS), request["keys"])):
        own = unpack_poly(piece, parameters, LIMBS).astype(np.int64)
        made = keys.deal(parameters, own, request["threshold"], len(targets), os.urandom(keys.ENTROPY_BYTES))
        for fd, dealt in zip(targets, made, strict=True):
            os.pwrite(fd, keys.pack_dealt(dealt), index * size_bytes)
    return {}


def gather(parameters: Parameters, request: Json, fds: list[int]) -> Json:
    """Add what all dealers gave, and take the values of the check. A file that is none: `holder` is its place."""
    *sources, target = fds
    size_bytes, count, challenge = keys.dealt_bytes(parameters), request["keys"], bytes.fromhex(request["challenge"])
    boxes = [read_pieces(fd, size_bytes, count, holder=place) for place, fd in enumerate(sources)]
    values: list[list[int]] = [[] for _ in boxes]
    for index in range(count):
        dealt = [_dealt(parameters, pieces[index], place) for place, pieces in enumerate(boxes)]
        for found, item in zip(values, dealt, strict=True):
            found.extend(keys.check_values(parameters, challenge, index, item))
        os.pwrite(target, pack_poly(keys.gather(parameters, dealt)), index * parameters.poly_bytes(LIMBS))
    return {"values": values}


def share(parameters: Parameters, request: Json, fds: list[int], indices: Indices) -> Json:
    """Make this holder's share of every chunk; `seed` is fresh and serves this share alone."""
    held, aggregate, target = fds
    (piece,) = read_pieces(held, parameters.poly_bytes(LIMBS), 1)
    own = unpack_poly(piece, parameters, LIMBS).astype(np.int64)
    quorum, seed = tuple(request["quorum"]), bytes.fromhex(request["seed"])
    sharer = shares.Sharer(parameters, own, request["point"], quorum, request["threshold"], request["holders"])
    block: list[int] = []
    for index in [*indices(request), None]:
        if index is not None:
            block.append(index)
        if block and (index is None or len(block) == BLOCK_CHUNKS):
            made = sharer.share([read_chunk(aggregate, parameters, place) for place in block], seed, block[0])
            for place, data in zip(block, made, strict=True):
                write_chunk(target, parameters, place, data, BlobKind.SHARE)
            block = []
    return {}


def fuse(
    parameters: Parameters, request: Json, fds: list[int], indices: Indices, decrypter: bfv.Decrypter, slot_bytes: int
) -> Json:
    """Add the shares to the aggregate and write the slots. A share that is none: `holder` is its place, from 0."""
    aggregate, *sources, target = fds
    for index in indices(request):
        given = [
            _residues(parameters, read_chunk(fd, parameters, index, BlobKind.SHARE), LIMBS, place)
            for place, fd in enumerate(sources)
        ]
        slots = decrypter.open(shares.fuse_residues(parameters, read_chunk(aggregate, parameters, index), given))
        os.pwrite(target, slots.tobytes(), index * parameters.ring_degree * slot_bytes)
    return {}


def _poly(parameters: Parameters, data: bytes, limbs: int, place: int) -> Ints:
    return _residues(parameters, data, limbs, place).astype(np.int64)


def _residues(parameters: Parameters, data: bytes, limbs: int, place: int) -> NDArray[np.uint64]:
    with naming(holder=place):
        return unpack_poly(data, parameters, limbs)


def _dealt(parameters: Parameters, data: bytes, place: int) -> keys.Dealt:
    with naming(holder=place):
        return keys.unpack_dealt(parameters, data)
