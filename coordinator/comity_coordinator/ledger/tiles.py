"""The Merkle tree's stored hashes, in tiles of 256 (C2SP tlog-tiles), read and extended inside one transaction.

Only hashes of complete subtrees are stored: tile level `t` holds those of tree level `8 * t`. The seven levels between
are computed from them (at most 255 hashes) and remembered while the transaction lasts.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.ledger import store
from comity_crypto.merkle import HASH_BYTES, node_hash

TILE_LEVELS = 8
TILE_WIDTH = 1 << TILE_LEVELS


class Tiles:
    """The tiles of one transaction."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._tiles: dict[tuple[int, int], bytes] = {}
        self._nodes: dict[tuple[int, int], bytes] = {}

    def read(self, level: int, index: int) -> bytes:
        """Return the hash of the complete subtree `index` at tree level `level` (0 = leaves).

        Raises:
            ComityError: `LEDGER_INVALID` if the tile does not hold it.
        """
        known = self._nodes.get((level, index))
        if known is not None:
            return known
        tile_level, height = divmod(level, TILE_LEVELS)
        if height:
            found = node_hash(self.read(level - 1, 2 * index), self.read(level - 1, 2 * index + 1))
        else:
            tile, offset = divmod(index, TILE_WIDTH)
            found = self._tile(tile_level, tile)[offset * HASH_BYTES : (offset + 1) * HASH_BYTES]
            if len(found) != HASH_BYTES:
                raise ComityError(ErrorCode.LEDGER_INVALID, "a tile is incomplete", level=level, index=index)
        self._nodes[level, index] = found
        return found

    def extend(self, complete: Iterable[tuple[int, int, bytes]]) -> None:
        """Store the (level, index, hash) that `merkle.Tree.append` returned, in that order.

        Raises:
            ComityError: `LEDGER_INVALID` if a hash would not come next in its tile.
        """
        grown: dict[tuple[int, int], bytearray] = {}
        for level, index, value in complete:
            self._nodes[level, index] = value
            tile_level, height = divmod(level, TILE_LEVELS)
            if height:
                continue
            tile, offset = divmod(index, TILE_WIDTH)
            key = (tile_level, tile)
            hashes = grown.get(key)
            if hashes is None:
                hashes = grown[key] = bytearray(self._tile(*key) if offset else b"")
            if len(hashes) != offset * HASH_BYTES:
                raise ComityError(ErrorCode.LEDGER_INVALID, "a tile has a gap", level=level, index=index)
            hashes += value
        # A tile that begins here is not there yet: if another sequencer wrote it, its key refuses this one.
        begun: list[tuple[int, int, bytes]] = []
        for key, made in grown.items():
            if self._tiles.get(key):
                store.change_tile(self._conn, *key, bytes(made))
            else:
                begun.append((*key, bytes(made)))
            self._tiles[key] = bytes(made)
        store.add_tiles(self._conn, begun)

    def _tile(self, level: int, tile: int) -> bytes:
        key = (level, tile)
        if key not in self._tiles:
            self._tiles[key] = store.tile(self._conn, level, tile)
        return self._tiles[key]
