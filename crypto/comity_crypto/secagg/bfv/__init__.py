"""Encrypted sums with TenSEAL's BFV, and the arithmetic under them.

params                 the two pinned parameter sets             residues, blobs   bytes on the wire, strictly read
encoder                replies as slots                          masks             pairwise masks modulo t
scheme, seal_format    TenSEAL (worker processes only)           ring              the same ring in numpy
in_place               a ciphertext's own memory
digests                linear digests of ciphertexts             workers, channel  the pool of processes
"""
