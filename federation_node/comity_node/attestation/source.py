"""Where this machine's evidence comes from: the kernel's reports, through one seam.

`ConfigfsTsm` follows Documentation/ABI/testing/configfs-tsm-report of Linux 6.7 and later:

1. a request is a folder of its own below the root, so that no other process writes into it;
2. `inblob` takes the 64 bytes of report data and counts once it is closed; each write adds one to `generation`;
3. `outblob` is what the hardware signed for the last write; `generation`, read again afterwards, has to be what our own
   writes account for: otherwise somebody wrote in between, and the report is not for us;
4. `provider` names the format: `sev_guest` or `tdx_guest`; `auxblob`, where there is one, holds what the host added;
5. `privlevel_floor`, where it is not 0, has to be asked for;
6. the folder is removed, whatever happened.

Every wait and every size is bounded.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.attestation.evidence import REPORT_DATA_BYTES
from comity_crypto.attestation.judging import SEV_SNP, TDX

ROOT = Path("/sys/kernel/config/tsm/report")
PROVIDERS = {"sev_guest": SEV_SNP, "tdx_guest": TDX}
BLOB_BYTES_MAX = 64 << 10
NUMBER_BYTES_MAX = 32
ATTEMPTS_MAX = 3
# The kernel answers at once; a busy security processor makes it wait, and so do we, a little.
WAIT_S, PAUSE_S = 10.0, 0.01
# The kernel fills a request's folder at once; whatever stands in for it may need a moment.
FILLED_S = 1.0


@dataclass(frozen=True, slots=True)
class Gathered:
    """What the machine said: the kind of evidence, the signed report, what the host added (perhaps nothing)."""

    kind: str
    report: bytes
    added: bytes


class EvidenceSource(Protocol):
    """A machine that can show what it runs."""

    def there(self) -> bool:
        """Tell whether evidence can be asked for at all."""
        ...

    def gather(self, report_data: bytes) -> Gathered:
        """Return evidence that carries `report_data` (64 bytes). Blocks for up to `WAIT_S` seconds.

        Raises:
            ComityError: `ATTESTATION_MISSING` if the machine gives none.
        """
        ...


class ConfigfsTsm:
    """Reports of the kernel's trusted security module interface, below `root`."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root

    def there(self) -> bool:
        """Tell whether the kernel offers reports and this process may ask for them."""
        return self._root.is_dir() and os.access(self._root, os.W_OK | os.X_OK)

    def gather(self, report_data: bytes) -> Gathered:
        """Return a report that carries `report_data`; see `EvidenceSource.gather`."""
        if len(report_data) != REPORT_DATA_BYTES:
            raise ComityError(ErrorCode.MALFORMED, f"report data has {REPORT_DATA_BYTES} bytes")
        for _ in range(ATTEMPTS_MAX):
            try:
                with self._request() as folder:
                    found = _ask(folder, report_data)
            except OSError as error:
                raise missing(f"the kernel gives no report: {error.strerror or 'no reason'}") from error
            if found is not None:
                return found
        raise missing("another process keeps writing into our requests")

    @contextlib.contextmanager
    def _request(self) -> Iterator[Path]:
        folder = self._root / f"comity-{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()


def missing(detail: str) -> ComityError:
    """Return the refusal for want of evidence."""
    return ComityError(ErrorCode.ATTESTATION_MISSING, detail[:400])


def _ask(folder: Path, report_data: bytes) -> Gathered | None:
    """Return the report, None if somebody else wrote into the request."""
    _wait_for(folder / "generation")
    before, writes = _number(folder / "generation"), 1
    floor = _number(folder / "privlevel_floor") if (folder / "privlevel_floor").exists() else 0
    if floor:
        _write(folder / "privlevel", b"%d" % floor)
        writes += 1
    _write(folder / "inblob", report_data)
    report = _read(folder / "outblob")
    provider = _read(folder / "provider").decode("ascii", "replace").strip()
    added = _read(folder / "auxblob") if (folder / "auxblob").exists() else b""
    if _number(folder / "generation") != before + writes:
        return None
    kind = PROVIDERS.get(provider)
    if kind is None:
        raise missing("the kernel's reports have a form that this release does not know")
    if not report:
        raise missing("the kernel's report is empty")
    return Gathered(kind, report, added)


def _wait_for(path: Path) -> None:
    end = time.monotonic() + FILLED_S
    while not path.exists() and time.monotonic() < end:
        time.sleep(PAUSE_S)


def _write(path: Path, data: bytes) -> None:
    # No truncation, no temporary file: this is a kernel's attribute. It takes effect when it is closed.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.write(descriptor, data) != len(data):
            raise missing("the kernel took a part of the request only")
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    """Read an attribute; one that would block is asked again for `WAIT_S` seconds."""
    end = time.monotonic() + WAIT_S
    while True:
        try:
            with path.open("rb") as file:
                data = file.read(BLOB_BYTES_MAX + 1)
            break
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(PAUSE_S)
    if len(data) > BLOB_BYTES_MAX:
        raise missing(f"the kernel's {path.name} is larger than any report")
    return data


def _number(path: Path) -> int:
    text = _read(path)[:NUMBER_BYTES_MAX].strip()
    if not text.isdigit():
        raise missing(f"the kernel's {path.name} is not a number")
    return int(text)
