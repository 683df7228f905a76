"""The shared ledger as this node sees it: proofs of its own entries, checkpoints that extend each other, exports."""
