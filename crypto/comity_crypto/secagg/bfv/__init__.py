"""Encrypted sums with TenSEAL's BFV: parameters, bytes, arithmetic, worker processes."""
