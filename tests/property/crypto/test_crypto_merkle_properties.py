"""Merkle trees of any size: what is proven verifies, what is changed does not, storage and pure forms agree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto import merkle
from comity_crypto.merkle import Tree, leaf_hash, node_hash

LEAVES = [leaf_hash(str(number).encode()) for number in range(140)]


def _naive(leaves: list[bytes]) -> bytes:
    """The recursive definition of RFC 9162 section 2.1.1, as an oracle."""
    if not leaves:
        return merkle.EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(_naive(leaves[:split]), _naive(leaves[split:]))


def _stored(size: int) -> tuple[Tree, dict[tuple[int, int], bytes]]:
    stored: dict[tuple[int, int], bytes] = {}
    tree = Tree(lambda level, index: stored[level, index])
    for leaf in LEAVES[:size]:
        for level, index, value in tree.append(leaf):
            assert (level, index) not in stored
            stored[level, index] = value
    return tree, stored


def _refused(call) -> None:
    with pytest.raises(ComityError) as caught:
        call()
    assert caught.value.code is ErrorCode.PROOF_INVALID


def test_roots_of_every_size():
    for size in range(len(LEAVES) + 1):
        assert merkle.root(LEAVES[:size]) == _naive(LEAVES[:size])


def test_every_proof_of_every_small_tree():
    tree, _ = _stored(40)
    for size in range(1, 41):
        root = _naive(LEAVES[:size])
        assert tree.root_at(size) == root
        for index in range(size):
            proof = tree.inclusion_proof(index, size)
            merkle.verify_inclusion(LEAVES[index], index, size, proof, root)
        whole = _stored(size)[0]
        for first in range(size + 1):
            proofs = [tuple(tree.inclusion_proof(index, size)) for index in range(first, size)]
            assert whole.inclusion_proofs(first) == proofs
            proof = tree.consistency_proof(first, size)
            merkle.verify_consistency(first, size, _naive(LEAVES[:first]), root, proof)


@given(st.data())
def test_a_changed_inclusion_proof_is_refused(data):
    size = data.draw(st.integers(2, 140))
    index = data.draw(st.integers(0, size - 1))
    root = _naive(LEAVES[:size])
    proof = merkle.inclusion_proof(LEAVES[:size], index)
    where = data.draw(st.integers(0, len(proof) - 1))
    changed = [*proof[:where], bytes(32), *proof[where + 1 :]]
    leaf = LEAVES[index]
    _refused(lambda: merkle.verify_inclusion(leaf, index, size, changed, root))
    _refused(lambda: merkle.verify_inclusion(leaf, index, size, [*proof, bytes(32)], root))
    _refused(lambda: merkle.verify_inclusion(leaf, index, size, proof[:-1], root))
    _refused(lambda: merkle.verify_inclusion(bytes(32), index, size, proof, root))
    _refused(lambda: merkle.verify_inclusion(leaf, index, size, proof, bytes(32)))
    other = data.draw(st.integers(0, size - 1).filter(lambda value: value != index))
    _refused(lambda: merkle.verify_inclusion(leaf, other, size, proof, root))
    _refused(lambda: merkle.verify_inclusion(leaf, size, size, proof, root))
    _refused(lambda: merkle.verify_inclusion(leaf, -1, size, proof, root))


@given(st.data())
def test_a_changed_consistency_proof_is_refused(data):
    second = data.draw(st.integers(2, 140))
    first = data.draw(st.integers(1, second - 1))
    old, new = _naive(LEAVES[:first]), _naive(LEAVES[:second])
    proof = merkle.consistency_proof(LEAVES[:second], first)
    where = data.draw(st.integers(0, len(proof) - 1))
    changed = [*proof[:where], bytes(32), *proof[where + 1 :]]
    verify = merkle.verify_consistency
    _refused(lambda: verify(first, second, old, new, changed))
    _refused(lambda: verify(first, second, old, new, [*proof, bytes(32)]))
    _refused(lambda: verify(first, second, old, new, proof[:-1]))
    _refused(lambda: verify(first, second, bytes(32), new, proof))
    _refused(lambda: verify(first, second, old, bytes(32), proof))
    _refused(lambda: verify(second, first, new, old, proof))


def test_forks_and_odd_hashes_are_refused():
    verify = merkle.verify_consistency
    _refused(lambda: verify(3, 3, bytes(32), LEAVES[0], []))
    _refused(lambda: verify(3, 3, bytes(32), bytes(32), [bytes(32)]))
    _refused(lambda: verify(0, 3, bytes(32), bytes(32), []))
    _refused(lambda: verify(1, 2, LEAVES[0], bytes(31), [LEAVES[1]]))
    _refused(lambda: merkle.verify_inclusion(LEAVES[0], 0, 2, [bytes(32)] * 70, bytes(32)))
    _refused(lambda: Tree().append(b"short"))


@given(st.integers(0, 140), st.integers(0, 140))
def test_a_reopened_tree_goes_on_like_the_old_one(size, more):
    _, stored = _stored(size)
    again = Tree(lambda level, index: stored[level, index], size)
    assert again.root() == _naive(LEAVES[:size])
    for leaf in LEAVES[size : size + more]:
        stored.update({(level, index): value for level, index, value in again.append(leaf)})
    assert again.root() == _naive(LEAVES[: size + more])
    assert again.size == min(size + more, 140)


def test_appending_returns_few_hashes_and_reads_nothing():
    reads: list[tuple[int, int]] = []
    tree = Tree(lambda level, index: reads.append((level, index)) or bytes(32))
    counts = [len(tree.append(leaf)) for leaf in LEAVES[:128]]
    assert reads == []
    assert max(counts) == 8
    assert sum(counts) == 255


def test_a_proof_reads_few_stored_hashes():
    _, stored = _stored(137)
    reads: list[tuple[int, int]] = []

    def read(level: int, index: int) -> bytes:
        reads.append((level, index))
        return stored[level, index]

    tree = Tree(read, 137)
    reads.clear()
    tree.inclusion_proof(64)
    assert len(reads) <= 12


def test_bad_storage_is_noticed():
    with pytest.raises(ComityError, match="LEDGER_INVALID"):
        Tree(lambda level, index: b"", 3)
    with pytest.raises(ComityError, match="LEDGER_INVALID"):
        Tree(None, 3)
    with pytest.raises(ComityError, match="PROOF_INVALID"):
        Tree().inclusion_proof(0)
