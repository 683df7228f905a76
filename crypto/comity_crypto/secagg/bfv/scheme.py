"""BFV through TenSEAL: make a key, encrypt, add, decrypt; one chunk of N slots at a time.

1. Runs in worker processes only: TenSEAL holds the GIL and writes to stdout (`worker_main.py`).
2. Packed residues in, packed residues out; a stranger's chunk passes `residues.py` before TenSEAL sees it.
3. The adder's context holds parameters and nothing else, the encrypter's the public key and nothing else. Both are
   built from bytes: TenSEAL's `make_context_public` would leave a working decryptor behind.
4. A chunk is exactly N slots: TenSEAL warns on stdout and splits anything longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv import in_place, seal_format
from comity_crypto.secagg.bfv.params import KEY_LIMBS, LIMBS, POLYS, RESIDUE_BITS, Parameters
from comity_crypto.secagg.bfv.residues import Residues, pack, unpack_chunk, unpack_key
from comity_crypto.secagg.frame.body import CONTRIBUTORS_MAX

Slots: TypeAlias = NDArray[np.uint64]  # shape (N,), values below the plain modulus

# By parameter set: whether this process finds a vector's residues in its memory, as the vector's message has them.
_in_place: dict[str, bool] = {}


def _context(data: bytes) -> Any:
    import tenseal

    return tenseal.context_from(data, n_threads=1)


def _load(parameters: Parameters, context: Any, residues: Residues) -> Any:
    import tenseal

    try:
        vector = tenseal.bfv_vector_from(context, seal_format.build_vector(parameters, residues))
    except (ValueError, RuntimeError) as error:
        raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "TenSEAL refuses the ciphertext") from error
    # An empty message loads as an empty vector, so the size is checked, not assumed.
    if vector.size() != parameters.ring_degree:
        raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "the ciphertext has another number of slots")
    return vector


def _read(parameters: Parameters, vector: Any) -> Residues:
    """Return the residues of one TenSEAL vector of this process, shape (2, 2, N)."""
    found = in_place.read(parameters, vector) if _in_place.get(parameters.name, True) else None
    if found is not None and parameters.name in _in_place:
        return found
    said = _read_message(parameters, vector)
    _in_place[parameters.name] = found is not None and np.array_equal(found, said)
    return said


def _read_message(parameters: Parameters, vector: Any) -> Residues:
    if seal_format.has_zstd():
        return seal_format.parse_ciphertext(parameters, seal_format.vector_ciphertext(vector.serialize()), LIMBS)
    return _read_elements(parameters, vector)


def _read_elements(parameters: Parameters, vector: Any) -> Residues:
    (ciphertext,) = vector.ciphertext()
    count = POLYS * LIMBS * parameters.ring_degree
    flat = np.fromiter(map(ciphertext.__getitem__, range(count)), dtype=np.uint64, count=count)
    return flat.reshape(POLYS, LIMBS, parameters.ring_degree)


class Encrypter:
    """Encrypts chunks under one round's public key (packed bytes). Raises `CIPHERTEXT_INVALID` on a malformed key."""

    def __init__(self, parameters: Parameters, public_key: bytes | memoryview) -> None:
        self._parameters = parameters
        try:
            self._context = _context(seal_format.build_context(parameters, unpack_key(public_key, parameters)))
        except (ValueError, RuntimeError) as error:
            raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "TenSEAL refuses the public key") from error

    def encrypt(self, slots: Slots) -> bytes:
        """Return one packed ciphertext of N slots, each below the plain modulus."""
        import tenseal

        parameters = self._parameters
        if slots.shape != (parameters.ring_degree,) or int(slots.max()) >= parameters.plain_modulus:
            raise ComityError(ErrorCode.INTERNAL, "slots outside of the plain modulus")
        signed = slots.astype(np.int64)
        signed -= (signed > parameters.plain_modulus // 2) * np.int64(parameters.plain_modulus)
        # TenSEAL's own class would copy the slots into a list, a tensor and a list again: a tenth of the time.
        return pack(_read(parameters, tenseal._ts_cpp.BFVVector(self._context.data, signed.tolist())))


class Adder:
    """Adds packed ciphertexts with a context that holds no key at all."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._context = _context(seal_format.build_context(parameters, None))

    def add(self, chunks: Sequence[bytes | memoryview]) -> bytes:
        """Return the packed sum of 1 to 50 packed ciphertexts. Raises `CIPHERTEXT_INVALID`."""
        if not 1 <= len(chunks) <= CONTRIBUTORS_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "too many contributions", count=len(chunks))
        parameters = self._parameters
        total = _load(parameters, self._context, unpack_chunk(chunks[0], parameters))
        for chunk in chunks[1:]:
            total.add_(_load(parameters, self._context, unpack_chunk(chunk, parameters)))
        return pack(_read(parameters, total))


class Decrypter:
    """Decrypts chunks with a secret that `make_key` returned in this organisation."""

    def __init__(self, parameters: Parameters, secret: bytes) -> None:
        self._parameters = parameters
        self._context = _context(secret)

    def __repr__(self) -> str:
        return f"Decrypter({self._parameters.name})"

    def decrypt(self, chunk: bytes | memoryview) -> Slots:
        """Return the N slots, each in [0, t). Raises `CIPHERTEXT_INVALID`."""
        return self.open(unpack_chunk(chunk, self._parameters))

    def open(self, residues: Residues) -> Slots:
        """Return the N slots, each in [0, t), of residues below their primes, shape (2, 2, N)."""
        vector = _load(self._parameters, self._context, residues)
        signed = np.array(vector.decrypt(), dtype=np.int64)
        signed += (signed < 0) * np.int64(self._parameters.plain_modulus)
        return signed.astype(np.uint64)


def make_key(parameters: Parameters) -> tuple[bytes, bytes]:
    """Return (packed public key, secret): a fresh key pair. The secret is TenSEAL's own message; it never travels."""
    import tenseal

    context = tenseal.context(
        tenseal.SCHEME_TYPE.BFV,
        parameters.ring_degree,
        plain_modulus=parameters.plain_modulus,
        coeff_mod_bit_sizes=[RESIDUE_BITS] * KEY_LIMBS,
        n_threads=1,
    )
    found = seal_format.context_parameters(context.serialize(False, False, False, False))
    if seal_format.has_zstd() and seal_format.unwrap(found, len(parameters.parms_bytes)) != parameters.parms_bytes:
        raise seal_format.layout_error("parameters")
    secret = context.serialize(True, True, False, False)
    return _public_key(parameters, context), secret


def _public_key(parameters: Parameters, context: Any) -> bytes:
    if seal_format.has_zstd():
        data = seal_format.context_public_key(context.serialize(True, False, False, False))
        return pack(seal_format.parse_ciphertext(parameters, data, KEY_LIMBS, key=True))
    ciphertext = context.public_key().data.data()
    count = POLYS * KEY_LIMBS * parameters.ring_degree
    flat = np.fromiter(map(ciphertext.__getitem__, range(count)), dtype=np.uint64, count=count)
    return pack(flat.reshape(POLYS, KEY_LIMBS, parameters.ring_degree))


def self_test(parameters: Parameters) -> None:
    """Pin TenSEAL's layout and arithmetic: key, encrypt twice, add without a key, rebuild, decrypt.

    Raises:
        ComityError: `UNSUPPORTED` if this build of TenSEAL lays its bytes out in another way or computes another sum.
    """
    public_key, secret = make_key(parameters)
    encrypter = Encrypter(parameters, public_key)
    modulus = parameters.plain_modulus
    first = (np.arange(parameters.ring_degree, dtype=np.uint64) * np.uint64(7919)) % np.uint64(modulus)
    second = np.uint64(modulus - 1) - first // np.uint64(2)
    packed = Adder(parameters).add([encrypter.encrypt(first), encrypter.encrypt(second)])
    if not np.array_equal(Decrypter(parameters, secret).decrypt(packed), (first + second) % np.uint64(modulus)):
        raise seal_format.layout_error("sums")
