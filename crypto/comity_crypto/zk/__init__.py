"""Zero knowledge over BLS12-381 G1: commitments, range proofs, equal openings, sums; one verifier apart from the rest.

Nothing is imported here: a node that proves and an auditor that verifies pay only for what they use.
Source: secure-aggregation.md section 7; docs/proofs.md.
"""
