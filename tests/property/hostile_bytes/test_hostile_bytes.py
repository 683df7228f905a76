"""Readers of strangers' bytes under a byte fuzzer: each reads or refuses by name; none crashes, none hangs.

`READERS` is the table: what a reader is given samples of, and how it reads. A sample itself is read; of what is changed
nothing is asked but that it ends well or in a `ComityError` whose code is not `INTERNAL`.
"""

from __future__ import annotations

import base64
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from harness import machines, mutations

from comity.wire import canonical, pieces
from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower import bundle, codec
from comity_crypto import bls, keys, merkle, notes, sealing, statements, tokens, vouching, x509
from comity_crypto.attestation import certificate_table, snp
from comity_crypto.psi import messages as psi
from comity_crypto.psi.identifiers import PADDED_MIN
from comity_crypto.secagg.bfv import blobs as bfv_blobs
from comity_crypto.secagg.bfv import residues
from comity_crypto.secagg.bfv.params import AGG_Q16
from comity_crypto.secagg.frame import boxes
from comity_crypto.secagg.frame.blobs import BlobKind
from comity_crypto.secagg.masked import blobs as masked_blobs
from comity_crypto.secagg.masked import keys as masked_keys
from comity_crypto.secagg.masked import shamir
from comity_crypto.zk import claims, group, independent, pedersen, schnorr
from comity_crypto.zk.binding import Binding
from comity_node.statistics import vectors
from comity_node.training.profiles.sum_form import Shape

CHANCE = random.Random(20)
KEYS = keys.OrgKeys.generate()
HERE = Binding("ab" * 32, "cd" * 32, "hospital-a")
OTHERS = ("org-01", "org-02")
TIMES, TIMES_SLOW = 60, 6_000
# Libraries warn of what is odd in a certificate or an archive; the product goes by what is refused.
pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass(frozen=True)
class Reader:
    """`read` takes a sample's bytes; `weight` is what one read costs, in units of a cheap one."""

    samples: tuple[bytes, ...]
    read: Callable[[bytes], Any]
    weight: int = 1


def text_of(data: bytes) -> str:
    return data.decode("utf-8", errors="surrogateescape")


def through_file(read: Callable[[int], Any]) -> Callable[[bytes], Any]:
    def run(data: bytes) -> Any:
        fd = os.memfd_create("stranger")
        try:
            os.write(fd, data)
            return read(fd)
        finally:
            os.close(fd)

    return run


def written(write: Callable[[int], Any]) -> bytes:
    fd = os.memfd_create("own")
    try:
        write(fd)
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def in_range(data: bytes) -> None:
    claims.verify_between([data[:48], data[48:96]], 0, 9, data[96:], HERE)


def alike(data: bytes) -> None:
    schnorr.verify_same(data[:48], data[48:96], data[96:], HERE)


def zero_knowledge() -> dict[str, Reader]:
    proven = claims.prove_at_least(180, 20, HERE)
    (one, of_one), (two, of_two) = pedersen.commit(7), pedersen.commit(7)
    same = schnorr.prove_same(one, two, of_one, of_two, HERE)
    between = claims.prove_between([one, two], [of_one, of_two], 0, 9, HERE)
    points = tuple(group.encode_point(group.hash_to_group(name)) for name in ("a", "b"))
    return {
        "zk point": Reader((*points, one), group.decode_point),
        "zk point, independent": Reader((*points, one), independent._point, 60),
        "zk scalar": Reader((bytes(32), bytes(31) + b"\x05"), group.decode_scalar),
        "zk at least": Reader(
            (proven.commitment + proven.proof,), lambda each: claims.verify_at_least(each[:48], 20, each[48:], HERE), 3
        ),
        "zk between": Reader((one + two + between,), in_range, 3),
        "zk same": Reader((one + two + same,), alike),
        "zk sum": Reader(
            (one + two,),
            lambda each: pedersen.verify_sum([each[:48], each[48:]], 14, of_one.blinding + of_two.blinding),
        ),
    }


LEAVES = [merkle.leaf_hash(each) for each in (b"a", b"b", b"c")]


def included(data: bytes) -> None:
    proof = [data[at : at + 32] for at in range(0, len(data), 32)]
    merkle.verify_inclusion(LEAVES[1], 1, 3, proof, merkle.root(LEAVES))


def certificates() -> dict[str, Reader]:
    secret = bls.secret_scalar(bytes(31) + b"\x07")
    public, signature = bls.public_of(secret), bls.sign(secret, b"said")
    ca_key, ca = x509.create_authority("med")
    _, request = x509.make_csr("north")
    node = x509.issue_node(ca_key, ca, request, "med", "north")
    point = notes.Checkpoint("med/log", 7, merkle.leaf_hash(b"x"))
    note = notes.cosign_note(notes.sign_note(point.text(), "med/log", KEYS), "north", KEYS, 1_700_000_000)
    voucher = vouching.vouch(Ed25519PrivateKey.generate(), "ab" * 32, "2026-01-01T00:00:00Z", "read")
    said = statements.sign_statement(KEYS, kind="k", consortium="med", issuer="north", body={"n": [1, "α"]})
    return {
        "bls public key": Reader((public,), bls.public_point),
        "bls signature": Reader((signature,), bls.signature_point),
        "bls statement": Reader((public + signature,), lambda each: bls.verify(each[:48], b"said", each[48:]), 4),
        "certificate": Reader((node, ca), x509.fingerprint, 2),
        "certificate's name": Reader((node,), x509.spiffe_of, 2),
        "certificate request": Reader((request,), x509._request_key, 2),
        "note": Reader(
            (note.encode(),), lambda each: notes.verify_note(text_of(each), "med/log", KEYS.public.statement), 2
        ),
        "cosignature": Reader(
            (note.encode(),), lambda each: notes.verify_cosignature(text_of(each), "north", KEYS.public.statement), 2
        ),
        "checkpoint": Reader((point.text().encode(),), lambda each: notes.Checkpoint.parse(text_of(each))),
        "voucher": Reader((voucher.to_bytes(),), vouching.Voucher.parse),
        "statement": Reader((said.to_bytes(),), statements.Statement.from_bytes),
        "inclusion": Reader((b"".join(merkle.inclusion_proof(LEAVES, 1)),), included),
    }


def secure_sums() -> dict[str, Reader]:
    key, info = boxes.BoxKey(bytes(range(96))), b"info"
    chunk = residues.pack(np.zeros((2, 2, AGG_Q16.ring_degree), np.uint64))

    def upload(fd: int) -> None:
        bfv_blobs.write_header(fd, AGG_Q16, BlobKind.UPLOAD, 1)
        bfv_blobs.write_chunk(fd, AGG_Q16, 0, chunk)

    def chunk_of(fd: int) -> Any:
        bfv_blobs.check_blob(fd, AGG_Q16, BlobKind.UPLOAD, 1)
        return residues.unpack_chunk(bfv_blobs.read_chunk(fd, AGG_Q16, 0), AGG_Q16)

    words = np.arange(40, dtype=np.uint32)
    share = shamir.split(bytes(32), 2, [1, 2, 3], os.urandom)[1]
    shown = masked_keys.Revelation(bytes(32), dict.fromkeys(OTHERS, share)).to_bytes(OTHERS)
    dealt, place = masked_keys.Deal(share, share), masked_keys.Place("a" * 64, "b" * 64)
    digests = [masked_keys.share_digest(place, "org-01", "org-02", kind, share) for kind in ("root", "seed")]

    def deal(data: bytes) -> None:
        masked_keys.check_deal(place, "org-01", "org-02", masked_keys.Deal.from_bytes(data), *digests)

    return {
        "encrypted upload": Reader((written(upload),), through_file(chunk_of), 6),
        "masked upload": Reader(
            (written(lambda fd: masked_blobs.write_blob(fd, BlobKind.UPLOAD, words)),),
            through_file(lambda fd: masked_blobs.read_blob(fd, BlobKind.UPLOAD, 40)),
        ),
        "box": Reader((boxes.seal(key.public, bytes(32), info),), lambda each: key.open(each, info)),
        "box key": Reader((key.public,), lambda each: boxes.seal(each, bytes(32), info)),
        "revelation": Reader((shown,), lambda each: masked_keys.Revelation.from_bytes(each, OTHERS)),
        "share": Reader((share,), shamir.check_share),
        "deal": Reader((dealt.to_bytes(),), deal),
        "shape of a reply": Reader((Shape(("arrays",), (("metrics", "loss", None),)).to_bytes(),), Shape.from_bytes),
        "statistic": Reader((vectors.write([5, -7]),), lambda each: vectors.read(each, 2)),
    }


def documents() -> dict[str, Reader]:
    made = machines.Maker()
    chain = {"vcek": made.vcek(), "ask": made.ask, "ark": made.ark}
    ref, sealed = sealing.seal_to_bytes([b"plain" * 40], {"north": KEYS.public.sealing}, b"c")
    content = codec.Content(
        (
            codec.Record("arrays", "array", (codec.array_entry("w", np.arange(6, dtype=np.float32)),)),
            codec.Record("metrics", "metric", (("loss", 0.5), ("l", [1, 2]))),
            codec.Record("config", "config", (("b", b"bytes"), ("t", "text"))),
        )
    )
    box = base64.b64decode(ref.boxes["north"])

    def opened(data: bytes) -> bytes:
        other = sealing.SealedRef(ref.digest, ref.size, {"north": base64.b64encode(data[: len(box)]).decode()})
        return sealing.open_bytes(KEYS, "north", other, b"c", data[len(box) :])

    masked = psi.ascending(b"\x02" + CHANCE.randbytes(32) for _ in range(PADDED_MIN))
    said = [psi.Message(psi.Kind.ASK), psi.Message(psi.Kind.MASKED, masked), psi.Message(psi.Kind.COUNT, count=3)]
    return {
        "json": Reader((b'{"a":[1,"x",null],"b":{"c":true}}',), canonical.read),
        "canonical json": Reader((b'{"a":[1,"x",null],"b":{"c":true}}',), canonical.parse),
        "piece": Reader((pieces.write(b"x" * 300, 2),), lambda each: pieces.read(each, 2)),
        "reply of an app": Reader((b"".join(content.parts()),), codec.read_blob),
        "app": Reader((app(),), bundle.inspect_app, 3),
        "sealed payload": Reader((box + sealed,), opened),
        "join token": Reader((b"comity-join-1.abc",), lambda each: tokens.JoinToken.parse(text_of(each))),
        "attestation report": Reader((made.report(bytes(64)),), snp.read),
        "attestation certificates": Reader((machines.certificate_table(chain),), certificate_table.read),
        "intersection": Reader(
            tuple(each.to_bytes() for each in said), lambda each: psi.message_of(each, *psi.Kind), 2
        ),
    }


def app() -> bytes:
    """A bundle of the right form, by the product's own writer."""
    project = (
        b'[project]\nname = "app"\nversion = "1"\ndependencies = ["numpy"]\n[tool.flwr.app]\npublisher = "p"\n'
        b'[tool.flwr.app.components]\nserverapp = "pkg.server:app"\nclientapp = "pkg.client:app"\n'
    )
    files = dict.fromkeys(("pkg/__init__.py", "pkg/client.py", "pkg/server.py"), b"# code\n")
    return bundle._zip({**files, "pyproject.toml": project})


@cache
def readers() -> dict[str, Reader]:
    return {**zero_knowledge(), **certificates(), **secure_sums(), **documents()}


NAMES = (
    "zk point", "zk point, independent", "zk scalar", "zk at least", "zk between", "zk same", "zk sum",
    "bls public key", "bls signature", "bls statement", "certificate", "certificate's name", "certificate request",
    "note", "cosignature", "checkpoint", "voucher", "statement", "inclusion",
    "encrypted upload", "masked upload", "box", "box key", "revelation", "share", "deal", "shape of a reply",
    "statistic",
    "json", "canonical json", "piece", "reply of an app", "app", "sealed payload", "join token",
    "attestation report", "attestation certificates", "intersection",
)  # fmt: skip


def fuzzed(name: str, times: int, seed: int) -> tuple[int, int]:
    """Return how many mutants were refused, and how many were read after all."""
    reader, chance, refused = readers()[name], random.Random(f"{name} {seed}"), 0
    count = max(8, times // reader.weight)
    for number in range(count):
        data = mutations.mutated(chance, reader.samples)
        try:
            with mutations.no_hang():
                reader.read(data)
        except ComityError as error:
            if error.code is ErrorCode.INTERNAL:
                raise AssertionError(f"{name}: mutant {number} of seed {seed} is taken for a fault here") from error
            refused += 1
        except Exception as error:
            raise AssertionError(f"{name}: mutant {number} of seed {seed} crashes: {data[:200].hex()}") from error
    return refused, count - refused


def test_every_reader_is_in_the_table() -> None:
    assert set(NAMES) == set(readers())


@pytest.mark.parametrize("name", NAMES)
def test_mutants_are_refused_or_read(name: str) -> None:
    for sample in readers()[name].samples:
        if name not in ("join token",):
            readers()[name].read(sample)
    refused, _ = fuzzed(name, TIMES, 1)
    assert refused > 0 or name in ("piece", "bls statement")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_mutants_are_refused_or_read_by_the_ten_thousand(name: str) -> None:
    fuzzed(name, TIMES_SLOW, 2)
