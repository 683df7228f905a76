"""The kernel's reports, through a folder that behaves like its own; what the host adds; what the settings allow."""

from __future__ import annotations

import hashlib
import os
import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.attestation import certificate_table
from comity_crypto.attestation.evidence import report_data
from comity_crypto.attestation.judging import Evidence, judge
from comity_node.attestation import source, trust
from comity_node.attestation.source import ROOT, ConfigfsTsm, Gathered
from comity_node.settings import AttestationSettings

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from harness import machines
from harness.machines import MEASUREMENT, Maker, Tsm

KEY, NONCE = b"k" * 32, b"n" * 32
DATA = report_data(KEY, NONCE)


@pytest.fixture(scope="module")
def maker() -> Maker:
    return Maker()


@pytest.fixture
def machine(tmp_path: Path, maker: Maker) -> Iterator[Tsm]:
    made = Tsm(tmp_path / "report", maker)
    yield made
    made.close()


def refused(act: object, *arguments: object) -> ComityError:
    with pytest.raises(ComityError) as caught:
        act(*arguments)  # type: ignore[operator]
    return caught.value


def test_a_report_as_the_kernel_gives_it(machine: Tsm, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[Path] = []
    monkeypatch.setattr(Path, "rmdir", lambda folder: removed.append(folder))  # noqa: PLW0108 - bound
    kernel = ConfigfsTsm(machine.root)
    assert kernel.there()
    found = kernel.gather(DATA)
    assert found.kind == "sev-snp"
    assert found.report[0x50:0x90] == DATA == machine.asked[0]
    assert [folder.parent for folder in removed] == [machine.root], "a request is removed"
    assert set(certificate_table.read(found.added)) == {"vcek", "ask", "ark"}
    machine.floor = 1
    assert kernel.gather(DATA).report[0x50:0x90] == DATA
    assert (removed[1] / "privlevel").read_bytes() == b"1", "the level that the kernel asks for"
    assert removed[0] != removed[1]


def test_a_request_that_others_write_into_is_given_up(machine: Tsm) -> None:
    machine.extra_writes = 1
    error = refused(ConfigfsTsm(machine.root).gather, DATA)
    assert error.code is ErrorCode.ATTESTATION_MISSING
    assert "another process" in error.detail
    assert len(machine.asked) == source.ATTEMPTS_MAX


@pytest.mark.parametrize("fault", ["provider", "empty", "large", "gone", "counter"])
def test_kernels_that_give_no_report(machine: Tsm, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = machine.root
    if fault == "provider":
        machine.provider = b"arm_cca_guest"
    elif fault == "empty":
        machine.report = lambda data: b""
    elif fault == "large":
        machine.report = lambda data: bytes(source.BLOB_BYTES_MAX + 1)
    elif fault == "counter":
        monkeypatch.setattr(machine, "_count", lambda folder, number: (folder / "generation").write_bytes(b"many"))
    else:
        root = tmp_path / "nothing"
        assert not ConfigfsTsm(root).there()
    error = refused(ConfigfsTsm(root).gather, DATA)
    assert error.code is ErrorCode.ATTESTATION_MISSING, error


def test_report_data_has_its_size(machine: Tsm) -> None:
    assert refused(ConfigfsTsm(machine.root).gather, b"short").code is ErrorCode.MALFORMED
    assert machine.asked == []


def test_tdx_reports_have_no_table(machine: Tsm, tmp_path: Path) -> None:
    machine.provider, machine.added, machine.report = b"tdx_guest\n", b"", lambda data: b"quote"
    found = ConfigfsTsm(machine.root).gather(DATA)
    assert found == Gathered("tdx", b"quote", b"")
    error = refused(trust.complete, found, tmp_path)
    assert (error.code, "collateral" in error.detail) == (ErrorCode.ATTESTATION_MISSING, True)
    (tmp_path / "collateral.json").write_bytes(b"{}")
    assert trust.complete(found, tmp_path) == Evidence("tdx", b"quote", {"collateral": b"{}"})


def test_what_the_host_does_not_add_comes_from_files(maker: Maker, tmp_path: Path) -> None:
    report = maker.report(DATA)
    found = Gathered("sev-snp", report, machines.certificate_table({"vcek": maker.vcek()}))
    assert "ask" in refused(trust.complete, found, tmp_path).detail
    (tmp_path / "ask.der").write_bytes(maker.ask)
    (tmp_path / "ark.der").write_bytes(bytes((16 << 10) + 1))
    assert "too large" in refused(trust.complete, found, tmp_path).detail
    (tmp_path / "ark.der").write_bytes(maker.ark)
    evidence = trust.complete(found, tmp_path)
    settings = AttestationSettings.model_validate(
        {"snp_floor": {"boot_loader": 4, "tee": 0, "snp": 22, "microcode": 9}}
    )
    workload = hashlib.sha256(MEASUREMENT).hexdigest()
    trusted = _trust(settings, maker.root, workload)
    judge(evidence, trusted, statement_key=KEY, nonce=NONCE, now=datetime.now(UTC))
    for narrower in ({"trust_roots": ("ab" * 32,)}, {"measurements": ("ab" * 32,)}, {"snp_floor": None}):
        less = _trust(settings.model_copy(update=narrower), maker.root, workload)
        error = refused(lambda less=less: judge(evidence, less, statement_key=KEY, nonce=NONCE, now=datetime.now(UTC)))
        assert error.code is ErrorCode.ATTESTATION_INVALID, narrower


def _trust(settings: AttestationSettings, root: str, workload: str) -> object:
    class Charter:
        trust_roots = (
            trust_root("sev-snp", root),
            trust_root("sev-snp-measurement", workload),
        )

    return trust.trust_of(settings, Charter())  # type: ignore[arg-type]


def trust_root(kind: str, digest: str) -> object:
    from comity_policies.charter import TrustRoot

    return TrustRoot(kind, "a name", digest)


def test_the_hosts_table_is_not_trusted() -> None:
    good = machines.certificate_table({"vcek": b"v" * 9, "crl": b"c" * 5, "ask": b"a" * 7})
    assert certificate_table.read(good) == {"vcek": b"v" * 9, "ask": b"a" * 7}
    assert certificate_table.read(b"") == certificate_table.read(bytes(4096)) == {}
    twice = good[:24] + good[:24] + good[48:]
    for odd in (
        good[:20],
        twice,
        good[:24] * 20,
        good[:20] + b"\xff" * 4 + good[24:],
        machines.GUIDS["ark"] + bytes(8),
    ):
        assert refused(certificate_table.read, odd).code is ErrorCode.ATTESTATION_INVALID
    chance = random.Random(2)
    for _ in range(2_000):
        hostile = bytearray(good)
        for _ in range(chance.randint(1, 6)):
            hostile[chance.randrange(len(hostile))] = chance.randrange(256)
        cut = bytes(hostile[: chance.randint(0, len(hostile))])
        try:
            found = certificate_table.read(cut)
        except ComityError:
            continue
        assert set(found) <= {"vcek", "ask", "ark"}
        assert all(data in cut for data in found.values())


@pytest.mark.skipif(
    not ConfigfsTsm(ROOT).there(), reason="no confidential machine: /sys/kernel/config/tsm/report is not here"
)
def test_this_machines_own_report() -> None:
    found = ConfigfsTsm().gather(os.urandom(64))
    assert found.report
