"""For every test: the wire's TLS rule stands before gRPC is imported, and recursion keeps its limit.

py_ecc raises the recursion limit to 100,000 when it is imported; the product puts it back (`quorum.py`), so do we.
"""

import sys

import comity as comity

_LIMIT = sys.getrecursionlimit()

import py_ecc.bls  # noqa: E402, F401

sys.setrecursionlimit(_LIMIT)
