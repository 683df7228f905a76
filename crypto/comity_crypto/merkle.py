"""Merkle tree mathematics of the ledger: RFC 6962 section 2.1 and RFC 9162 section 2.1, SHA-256, no I/O.

`H(leaf) = SHA-256(0x00 || data)`, `H(node) = SHA-256(0x01 || left || right)`; a tree of n leaves splits at the largest
power of two below n. All sizes and indices count leaves; indices start at 0; hashes have 32 bytes.

Rules:
1. Verifiers take untrusted proofs: lengths and bounds are checked, too long is as wrong as too short, answers are
   exceptions (`PROOF_INVALID`), so a forgotten return value cannot accept.
2. A *level hash* (level, index) covers the complete subtree of leaves `index * 2^level ... (index + 1) * 2^level - 1`;
   complete subtrees never change, so they can be stored once and served as tiles.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence

from comity.wire.errors import ComityError, ErrorCode

HASH_BYTES = 32
SIZE_MAX = 2**53 - 1
EMPTY_ROOT = hashlib.sha256(b"").digest()

_RANGES_KEPT = 4_096

Read = Callable[[int, int], bytes]


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of one leaf's data."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """Return the root over leaf hashes; of none, the hash of nothing (RFC 9162 section 2.1.1)."""
    tree = Tree()
    for leaf in leaves:
        tree.append(leaf)
    return tree.root()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Return the proof that leaf hash `index` is among `leaves`. Raises `PROOF_INVALID` out of range."""
    return _filled(leaves).inclusion_proof(index, len(leaves))


def consistency_proof(leaves: Sequence[bytes], first_size: int) -> list[bytes]:
    """Return the proof that the first `first_size` leaf hashes are a prefix. Raises `PROOF_INVALID` out of range."""
    return _filled(leaves).consistency_proof(first_size, len(leaves))


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root_hash: bytes) -> None:
    """Check that leaf hash `leaf` stands at `index` in the tree of `size` leaves with `root_hash`.

    Source: RFC 9162 section 2.1.3.2. Raises `PROOF_INVALID`.
    """
    _check_hashes([leaf, root_hash, *proof])
    if not 0 <= index < size <= SIZE_MAX:
        raise ComityError(ErrorCode.PROOF_INVALID, "the index is outside the tree")
    node, last, value = index, size - 1, leaf
    for step in proof:
        if last == 0:
            raise ComityError(ErrorCode.PROOF_INVALID, "the inclusion proof is too long")
        if node & 1 or node == last:
            value = node_hash(step, value)
            while not node & 1 and node:  # bounded: node < 2^53 halves each time
                node, last = node >> 1, last >> 1
        else:
            value = node_hash(value, step)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise ComityError(ErrorCode.PROOF_INVALID, "the inclusion proof is too short")
    if not hmac.compare_digest(value, root_hash):
        raise ComityError(ErrorCode.PROOF_INVALID, "the inclusion proof leads to another root")


def verify_consistency(
    first_size: int, second_size: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that the tree of `second_size` extends the tree of `first_size`.

    Source: RFC 9162 section 2.1.4.2; an empty first tree is a prefix of every tree. Raises `PROOF_INVALID`.
    """
    _check_hashes([first_root, second_root, *proof])
    if not 0 <= first_size <= second_size <= SIZE_MAX:
        raise ComityError(ErrorCode.PROOF_INVALID, "the sizes do not grow")
    if first_size in (0, second_size):
        _check_trivial(first_size, second_size, first_root, second_root, proof)
        return
    # When the first size is a power of two, its root is the first element of the path.
    path = [first_root, *proof] if first_size & (first_size - 1) == 0 else list(proof)
    if not path:
        raise ComityError(ErrorCode.PROOF_INVALID, "the consistency proof is too short")
    node, last = first_size - 1, second_size - 1
    while node & 1:  # bounded: node < 2^53 halves each time
        node, last = node >> 1, last >> 1
    first = second = path[0]
    for step in path[1:]:
        if last == 0:
            raise ComityError(ErrorCode.PROOF_INVALID, "the consistency proof is too long")
        if node & 1 or node == last:
            first, second = node_hash(step, first), node_hash(step, second)
            while not node & 1 and node:  # bounded: node < 2^53 halves each time
                node, last = node >> 1, last >> 1
        else:
            second = node_hash(second, step)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise ComityError(ErrorCode.PROOF_INVALID, "the consistency proof is too short")
    if not (hmac.compare_digest(first, first_root) and hmac.compare_digest(second, second_root)):
        raise ComityError(ErrorCode.PROOF_INVALID, "the consistency proof leads to other roots")


class Tree:
    """A growing tree that holds O(log n) hashes and reads older ones where they are stored.

    Args:
        read: returns a stored level hash; it must know every hash that `append` returned. Without it the tree can
            append and give its root, not proofs.
        size: how many leaves are stored already; their peaks are read at once.

    Raises:
        ComityError: `LEDGER_INVALID` if `read` returns something that is no hash.
    """

    def __init__(self, read: Read | None = None, size: int = 0) -> None:
        if not 0 <= size <= SIZE_MAX:
            raise ComityError(ErrorCode.LEDGER_INVALID, "a tree cannot have this size")
        self._read = read
        self._size = size
        # Leaves never change, so what was computed over some of them holds: proofs of one batch share most of theirs.
        self._ranges: dict[tuple[int, int], bytes] = {}
        # (level, hash) of the complete subtrees, left to right: one for each set bit of the size.
        self._peaks = [(level, self._stored(level, index)) for level, index in _peaks(0, size)]

    @property
    def size(self) -> int:
        """Number of leaves."""
        return self._size

    def peaks(self) -> list[bytes]:
        """Return the hashes of the complete subtrees, left to right: with the size, all that appending needs."""
        return [value for _, value in self._peaks]

    def append(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Add a leaf hash and return the (level, index, hash) that became complete, for the caller to store.

        Raises:
            ComityError: `PROOF_INVALID` if `leaf` is no hash.
        """
        _check_hash(leaf)
        level, index, value = 0, self._size, leaf
        complete = [(level, index, value)]
        while self._peaks and self._peaks[-1][0] == level:  # bounded: one peak fewer each time
            value = node_hash(self._peaks.pop()[1], value)
            level, index = level + 1, index >> 1
            complete.append((level, index, value))
        self._peaks.append((level, value))
        self._size += 1
        return complete

    def root(self) -> bytes:
        """Return the root of all leaves."""
        return _bag([value for _, value in self._peaks])

    def root_at(self, size: int) -> bytes:
        """Return the root of the first `size` leaves. Raises `PROOF_INVALID` out of range."""
        self._check_size(size)
        return self._range(0, size)

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """Return the proof for leaf `index` in the tree of the first `size` leaves (all, unless given).

        Source: RFC 9162 section 2.1.3.1. Raises `PROOF_INVALID` out of range.
        """
        end = self._size if size is None else size
        self._check_size(end)
        if not 0 <= index < end:
            raise ComityError(ErrorCode.PROOF_INVALID, "the index is outside the tree")
        proof: list[bytes] = []
        start = 0
        while end - start > 1:  # bounded: the range at least loses its larger half's power of two
            split = start + _split(end - start)
            if index < split:
                proof.append(self._range(split, end))
                end = split
            else:
                proof.append(self._range(start, split))
                start = split
        proof.reverse()
        return proof

    def inclusion_proofs(self, first: int) -> list[tuple[bytes, ...]]:
        """Return the proofs for the leaves from `first` to the last in the tree of all, in order.

        They are those of `inclusion_proof`, found in one walk down the tree. Raises `PROOF_INVALID` out of range.
        """
        self._check_size(first)
        proofs: list[tuple[bytes, ...]] = []
        # Subtrees (start, end) with the hashes that prove their root, lowest first.
        left: list[tuple[int, int, tuple[bytes, ...]]] = [(0, self._size, ())] if first < self._size else []
        while left:  # bounded: each turn ends at a leaf or halves a subtree that holds one asked for
            start, end, above = left.pop()
            if end - start == 1:
                proofs.append(above)
                continue
            split = start + _split(end - start)
            left.append((split, end, (self._root_of(start, split), *above)))
            if first < split:
                left.append((start, split, (self._root_of(split, end), *above)))
        return proofs

    def consistency_proof(self, first_size: int, second_size: int | None = None) -> list[bytes]:
        """Return the proof that the first tree is a prefix of the second (all leaves, unless given).

        Source: RFC 9162 section 2.1.4.1; empty for an empty first tree. Raises `PROOF_INVALID` out of range.
        """
        end = self._size if second_size is None else second_size
        self._check_size(end)
        if not 0 <= first_size <= end:
            raise ComityError(ErrorCode.PROOF_INVALID, "the sizes do not grow")
        if first_size in (0, end):
            return []
        proof: list[bytes] = []
        start, whole = 0, True
        while first_size != end:  # bounded: as in `inclusion_proof`
            split = start + _split(end - start)
            if first_size <= split:
                proof.append(self._range(split, end))
                end = split
            else:
                proof.append(self._range(start, split))
                start, whole = split, False
        if not whole:
            proof.append(self._range(start, end))
        proof.reverse()
        return proof

    def _range(self, start: int, end: int) -> bytes:
        """Return the hash of the subtree over leaves start..end - 1, where `start` is a split point."""
        value = self._ranges.get((start, end))
        if value is None:
            value = _bag([self._stored(level, index) for level, index in _peaks(start, end)])
            if len(self._ranges) >= _RANGES_KEPT:
                self._ranges.clear()
            self._ranges[start, end] = value
        return value

    def _root_of(self, start: int, end: int) -> bytes:
        """As `_range`, without a note of what is stored anyway."""
        size = end - start
        if size & (size - 1):
            return self._range(start, end)
        level = size.bit_length() - 1
        return self._stored(level, start >> level)

    def _stored(self, level: int, index: int) -> bytes:
        if self._read is None:
            raise ComityError(ErrorCode.LEDGER_INVALID, "this tree was given no stored hashes")
        value = self._read(level, index)
        if not isinstance(value, bytes) or len(value) != HASH_BYTES:
            raise ComityError(ErrorCode.LEDGER_INVALID, "a stored hash is missing", level=level, index=index)
        return value

    def _check_size(self, size: int) -> None:
        if not 0 <= size <= self._size:
            raise ComityError(ErrorCode.PROOF_INVALID, "the tree is not that large", size=size)


def _filled(leaves: Sequence[bytes]) -> Tree:
    stored: dict[tuple[int, int], bytes] = {}
    tree = Tree(lambda level, index: stored[level, index])
    for leaf in leaves:
        stored.update({(level, index): value for level, index, value in tree.append(leaf)})
    return tree


def _peaks(start: int, end: int) -> list[tuple[int, int]]:
    """Cut leaves start..end - 1 into complete subtrees, largest first; `start` is a multiple of the largest."""
    peaks = []
    while start < end:  # bounded: one bit of the length each time
        level = (end - start).bit_length() - 1
        peaks.append((level, start >> level))
        start += 1 << level
    return peaks


def _bag(peaks: Sequence[bytes]) -> bytes:
    """Join complete subtrees, left to right, into one root."""
    if not peaks:
        return EMPTY_ROOT
    value = peaks[-1]
    for left in reversed(peaks[:-1]):
        value = node_hash(left, value)
    return value


def _split(size: int) -> int:
    """Return the largest power of two below `size`, for `size` > 1."""
    return 1 << ((size - 1).bit_length() - 1)


def _check_trivial(
    first_size: int, second_size: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]
) -> None:
    if proof:
        raise ComityError(ErrorCode.PROOF_INVALID, "the consistency proof is too long")
    if first_size == 0 and first_root != EMPTY_ROOT:
        raise ComityError(ErrorCode.PROOF_INVALID, "the root of nothing is another")
    if first_size == second_size and first_root != second_root:
        raise ComityError(ErrorCode.PROOF_INVALID, "two roots for one size: the log is forked")


def _check_hashes(hashes: Sequence[bytes]) -> None:
    # A proof for 2^53 leaves has at most 54 hashes; with leaf and root there are never more than 64.
    if len(hashes) > 64:
        raise ComityError(ErrorCode.PROOF_INVALID, "a proof is a short list of hashes")
    for value in hashes:
        _check_hash(value)


def _check_hash(value: bytes) -> None:
    if not isinstance(value, bytes) or len(value) != HASH_BYTES:
        raise ComityError(ErrorCode.PROOF_INVALID, "a hash has 32 bytes")
