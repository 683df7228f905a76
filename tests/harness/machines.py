"""Confidential machines for tests: a manufacturer of our own, reports in AMD's published form, and the kernel's folder.

`Maker` signs reports and certificates as AMD's documents 56860 and 57230 lay them out, under a root that nobody trusts.
`Tsm` behaves like /sys/kernel/config/tsm/report: a folder that is made in it is filled, takes `inblob`, counts it in
`generation`, and hands out `outblob`. Tests let it misbehave.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from comity_crypto.attestation import snp

CHIP, MEASUREMENT = bytes(range(64)), b"m" * 48
TCB = snp.Tcb(boot_loader=4, tee=0, snp=22, microcode=213)
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
AMD = "1.3.6.1.4.1.3704.1."
GUIDS = {
    "vcek": UUID("63da758d-e664-4564-adc5-f4b93be8accd").bytes,
    "ask": UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782").bytes,
    "ark": UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae").bytes,
}
POLL_S = 0.002


@functools.cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """Keys of 4096 bits take seconds to find: these were found once, for tests, and sign nothing else."""
    primes = json.loads((Path(__file__).parent / "machine_primes.json").read_text())[name]
    p, q, e = int(primes["p"], 16), int(primes["q"], 16), 65537
    d = pow(e, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(e, p * q)
    numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public)
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)


def raw(tcb: snp.Tcb) -> bytes:
    """Return firmware versions as a report lays them out."""
    return bytes([tcb.boot_loader, tcb.tee, 0, 0, 0, 0, tcb.snp, tcb.microcode])


def der_integer(value: int) -> bytes:
    """Return a number below 256 in DER."""
    return bytes([2, 1, value]) if value < 128 else bytes([2, 2, 0, value])


def certificate_table(certificates: dict[str, bytes]) -> bytes:
    """Return the host's table of certificates."""
    head, body, at = b"", b"", 24 * (len(certificates) + 1)
    for name, data in certificates.items():
        head += GUIDS.get(name, b"\x07" * 16) + at.to_bytes(4, "little") + len(data).to_bytes(4, "little")
        body, at = body + data, at + len(data)
    return head + bytes(24) + body


class Maker:
    """A manufacturer: root, signing key, one chip. `swapped` is another one, whose root nobody trusts."""

    def __init__(self, now: datetime | None = None, *, swapped: bool = False) -> None:
        self.now = now or datetime.now(UTC)
        self.ark_key, self.ask_key = (rsa_key(each) for each in (("ask", "ark") if swapped else ("ark", "ask")))
        self.chip_key = ec.generate_private_key(ec.SECP384R1())
        self.ark = self.certificate("ark", self.ark_key, "ark", self.ark_key, ca=True)
        self.ask = self.certificate("ask", self.ask_key, "ark", self.ark_key, ca=True)

    def certificate(self, subject: str, key: Any, issuer: str, by: Any, **changes: Any) -> bytes:
        """Return a certificate as DER; `changes` are ca, extensions, days, rsa_padding, digest."""
        made = (
            x509.CertificateBuilder()
            .subject_name(_name(subject))
            .issuer_name(_name(issuer))
            .public_key(key.public_key())
            .serial_number(7)
            .not_valid_before(self.now - timedelta(days=1))
            .not_valid_after(self.now + timedelta(days=changes.get("days", 100)))
        )
        if changes.get("ca"):
            made = made.add_extension(x509.BasicConstraints(True, None), critical=True)
        for oid, value in changes.get("extensions", ()):
            made = made.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(AMD + oid), value), False)
        digest = changes.get("digest") or hashes.SHA384()
        return made.sign(by, digest, rsa_padding=changes.get("rsa_padding", PSS)).public_bytes(Encoding.DER)

    def vcek(self, tcb: snp.Tcb = TCB, chip: bytes = CHIP, without: tuple[str, ...] = (), **changes: Any) -> bytes:
        """Return the chip's certificate."""
        extensions = {
            "3.1": der_integer(tcb.boot_loader),
            "3.2": der_integer(tcb.tee),
            "3.3": der_integer(tcb.snp),
            "3.8": der_integer(tcb.microcode),
            "4": chip,
        }
        kept = [(oid, value) for oid, value in extensions.items() if oid not in without]
        values = {"subject": "vcek", "key": self.chip_key, "issuer": "ask", "by": self.ask_key, "extensions": kept}
        return self.certificate(**{**values, **changes})

    def chain(self, **changes: bytes) -> snp.Chain:
        """Return the three certificates."""
        return replace(snp.Chain(self.vcek(), self.ask, self.ark), **changes)

    @property
    def root(self) -> str:
        """The digest of the root, as a charter records it."""
        return hashlib.sha256(self.ark).hexdigest()

    def policy(self, **changes: Any) -> snp.Policy:
        """Return what accepts this machine and nothing else."""
        return replace(snp.Policy(frozenset({self.root}), frozenset({MEASUREMENT}), TCB), **changes)

    def report(self, data: bytes, by: Any = None, version: int = 5, **fields: bytes) -> bytes:
        """Return a signed report that carries `data`; `fields` overwrite places, such as x90=measurement."""
        values = {
            0x00: version.to_bytes(4, "little"),
            0x08: (0x30000).to_bytes(8, "little"),
            0x34: (1).to_bytes(4, "little"),
            0x50: data,
            0x90: MEASUREMENT,
            0x180: raw(TCB),
            0x188: b"\x19",
            0x1A0: CHIP,
            0x1E0: raw(TCB),
        }
        filled = bytearray(snp.REPORT_BYTES)
        for at, value in {**values, **{int(key[1:], 16): value for key, value in fields.items()}}.items():
            filled[at : at + len(value)] = value
        signed = (by or self.chip_key).sign(bytes(filled[: snp.SIGNED_BYTES]), ec.ECDSA(hashes.SHA384()))
        r, s = decode_dss_signature(signed)
        filled[0x2A0:0x2E8], filled[0x2E8:0x330] = r.to_bytes(72, "little"), s.to_bytes(72, "little")
        return bytes(filled)


class Tsm:
    """The kernel's folder of reports over a `Maker`'s machine, in a thread of its own.

    `report` makes the report of given data, `added` is the host's table; `provider`, `floor` and `extra_writes` are
    what the kernel says of itself.
    """

    def __init__(self, root: Path, maker: Maker) -> None:
        self.root, self.maker = root, maker
        self.report: Callable[[bytes], bytes] = maker.report
        self.added = certificate_table({"vcek": maker.vcek(), "ask": maker.ask, "ark": maker.ark})
        self.provider, self.floor, self.extra_writes = b"sev_guest\n", 0, 0
        self.asked: list[bytes] = []
        root.mkdir(parents=True, exist_ok=True)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._ended.set()
        self._thread.join(5)

    def _watch(self) -> None:
        seen: set[str] = set()
        while not self._ended.wait(POLL_S):
            for folder in sorted(self.root.iterdir()):
                if folder.name not in seen:
                    seen.add(folder.name)
                    self._serve(folder)

    def _serve(self, folder: Path) -> None:
        for name in ("inblob", "outblob"):
            os.mkfifo(folder / name)
        (folder / "provider").write_bytes(self.provider)
        if self.added:
            (folder / "auxblob").write_bytes(self.added)
        if self.floor:
            (folder / "privlevel_floor").write_bytes(b"%d\n" % self.floor)
            (folder / "privlevel").touch()
        self._count(folder, 0)
        data = self._take(folder / "inblob")
        self.asked.append(data)
        self._count(folder, 1 + bool(self.floor) + self.extra_writes)
        if data:
            self._give(folder / "outblob", self.report(data))

    def _count(self, folder: Path, number: int) -> None:
        beside = folder / ".generation"
        beside.write_bytes(b"%d\n" % number)
        beside.rename(folder / "generation")

    def _take(self, path: Path) -> bytes:
        """Read what is written until it is closed."""
        descriptor, data = os.open(path, os.O_RDONLY | os.O_NONBLOCK), b""
        try:
            while not self._ended.wait(POLL_S):
                try:
                    part = os.read(descriptor, 4096)
                except BlockingIOError:
                    continue
                if not part and data:
                    return data
                data += part
        finally:
            os.close(descriptor)
        return data

    def _give(self, path: Path, data: bytes) -> None:
        """Write once somebody reads."""
        while not self._ended.wait(POLL_S):
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                continue
            os.set_blocking(descriptor, True)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            return


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
