"""What this node trusts, and what its own evidence consists of: settings, charter and files, joined.

Rules:
1. a root or workload counts if the charter trusts it and, where the settings name any, the settings do too;
2. what vouches for our own hardware is taken from the host's table where there is one, else from files of the admin:
   `vcek`, `ask`, `ark` (each `.pem` or `.der`) or `collateral.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.attestation import certificate_table
from comity_crypto.attestation.judging import ENDORSEMENTS, SEV_SNP, Evidence, Trust
from comity_crypto.attestation.snp import Tcb
from comity_node.attestation.source import ConfigfsTsm, Gathered, missing
from comity_node.settings import AttestationSettings, NodeSettings
from comity_policies.charter import Charter
from comity_policies.evidence import charter_trust

SUFFIXES = {"collateral": (".json",)}
CERTIFICATE_SUFFIXES = (".pem", ".der")


def able(settings: NodeSettings) -> bool:
    """Tell whether this node can show evidence: it is set up for it, and the kernel offers reports."""
    wanted = settings.attestation
    return wanted is not None and ConfigfsTsm(wanted.report_root).there()


def settings_of(settings: NodeSettings) -> AttestationSettings:
    """Return the settings of attestation. Raises `UNSUPPORTED` where there are none."""
    if settings.attestation is None:
        raise ComityError(ErrorCode.UNSUPPORTED, "this node is not set up for attestation", field="attestation")
    return settings.attestation


def trust_of(settings: AttestationSettings, charter: Charter) -> Trust:
    """Return what counts here under `charter` (rule 1)."""
    roots, measurements = charter_trust(charter)
    floor = settings.snp_floor
    return Trust(
        roots=_narrowed(roots, settings.trust_roots),
        measurements=_narrowed(measurements, settings.measurements),
        floor=None if floor is None else Tcb(floor.boot_loader, floor.tee, floor.snp, floor.microcode),
        vmpl_max=settings.vmpl_max,
        statuses=frozenset(settings.tcb_statuses),
        refused_advisories=frozenset(settings.refused_advisories),
    )


def complete(gathered: Gathered, folder: Path) -> Evidence:
    """Join a report with what vouches for its key (rule 2).

    Raises:
        ComityError: `ATTESTATION_MISSING` naming the file that is not there; `ATTESTATION_INVALID`.
    """
    found: dict[str, bytes] = {}
    if gathered.kind == SEV_SNP:
        found = certificate_table.read(gathered.added)
    for name, size_max in ENDORSEMENTS[gathered.kind].items():
        if name not in found:
            found[name] = _file(folder, name, size_max)
    return Evidence(gathered.kind, gathered.report, found)


def _narrowed(trusted: Mapping[str, frozenset[str]], own: tuple[str, ...] | None) -> dict[str, frozenset[str]]:
    return {kind: named if own is None else named & frozenset(own) for kind, named in trusted.items()}


def _file(folder: Path, name: str, size_max: int) -> bytes:
    for suffix in SUFFIXES.get(name, CERTIFICATE_SUFFIXES):
        path = folder / f"{name}{suffix}"
        try:
            with path.open("rb") as file:
                data = file.read(size_max + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise missing(f"{path.name} in the folder of attestation cannot be read") from error
        if len(data) > size_max:
            raise missing(f"{path.name} in the folder of attestation is too large")
        return data
    raise missing(f"the host vouches for no {name}, and no such file is in the folder of attestation")
