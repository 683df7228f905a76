"""A commutative cipher that is quick and proves nothing: powers modulo a prime, in the shape of points."""

import hashlib

import pytest

from comity_crypto.psi.identifiers import ELEMENT_BYTES
from comity_crypto.psi.messages import POINT_BYTES

# 2^255 - 19 is prime, and so is enough of its order: odd exponents that 2, 3 and the small factors do not divide.
PRIME = 2**255 - 19


class ToyCipher:
    """The seam of `PsiWorkers`, at once and in this process."""

    async def mask(self, key, elements):
        items = (elements[at : at + ELEMENT_BYTES] for at in range(0, len(elements), ELEMENT_BYTES))
        return b"".join(_power(int.from_bytes(hashlib.sha256(item).digest(), "big"), key) for item in items)

    async def remask(self, key, points):
        items = (points[at : at + POINT_BYTES] for at in range(0, len(points), POINT_BYTES))
        return b"".join(_power(int.from_bytes(item[1:], "big"), key) for item in items)


def _power(base, key):
    # Squares only, so that no element has a small order; a key is any odd number, and 32 bits of it are quick.
    return b"\x02" + pow(base * base, int.from_bytes(key[:4], "big") | 1, PRIME).to_bytes(32, "big")


@pytest.fixture(scope="session")
def cipher_class():
    return ToyCipher
