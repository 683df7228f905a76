"""What an organisation's node is told, and where its files lie.

`<home>/node.json` is written by `comity node join` and edited by the organisation's admin. Nothing in it is secret. The
folder is 0700; keys are below `keys/`, made and guarded by the key store.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from comity.observability.settings import MetricsSettings, TraceSettings
from comity.wire import ids
from comity.wire.errors import ComityError, ErrorCode

SETTINGS_BYTES_MAX = 64 * 1024
NO_NODE = "no node here: name its folder with --home or COMITY_HOME, or make one with `comity node join`"
LOG_KEY_BYTES = 32

Positive = Annotated[int, Field(gt=0)]
Version = Annotated[int, Field(ge=0, le=255)]
Address = Annotated[str, Field(pattern=r"^[^\s,]{1,250}:[0-9]{1,5}$")]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Limits(BaseModel):
    """Bounds on what this node spends on others' work."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    worker_memory_bytes: Positive = 4 << 30
    worker_file_bytes: Positive = 2 << 30
    worker_processes: Positive = 64
    worker_open_files: Positive = 256
    runs_at_once: Positive = 4
    reply_bytes_max: Positive = 1 << 30
    payload_bytes_max: Positive = 2 << 30
    payload_store_bytes: Positive = 20 << 30


class DecisionLogLimits(BaseModel):
    """How much of the decision log is kept; the oldest goes first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows_max: Positive = 100_000
    days_max: Positive = 400
    size_bytes_max: Positive = 1 << 30


class OidcSettings(BaseModel):
    """The identity provider whose ID tokens count here; `docs/access.md` explains each field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: str = Field(max_length=2048)
    audience: str = Field(max_length=512)
    """What a token must be made for; also the client id of `comity login` unless `client_id` is given."""
    client_id: str | None = None
    jwks_url: str | None = None
    """Where the issuer's keys are; by default what its discovery document names."""
    scope: str = "openid"
    user_claim: str = "sub"
    groups_claim: str = "groups"
    ca_file: Path | None = None
    """Authorities that vouch for the issuer's server; by default the well-known ones."""
    lifetime_max_s: Positive = 86_400
    """The longest life of a token that is accepted."""


class SnpFloor(BaseModel):
    """The lowest versions of SEV-SNP firmware that count here, as AMD numbers them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    boot_loader: Version
    tee: Version
    snp: Version
    microcode: Version


class AttestationSettings(BaseModel):
    """Evidence of confidential hardware; `docs/attestation.md` explains each field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    report_root: Path = Path("/sys/kernel/config/tsm/report")
    """Where the kernel takes requests for reports."""
    files: Path = Path("attestation")
    """What vouches for our own hardware, below the node's home: vcek, ask, ark (.pem, .der) or collateral.json."""
    evidence_max_age_s: Positive = 86_400
    """Other parties' evidence that is older is asked for anew before an order."""
    trust_roots: tuple[Digest, ...] | None = None
    """SHA-256 of the roots that count here, among those of the charter; by default all of those."""
    measurements: tuple[Digest, ...] | None = None
    """SHA-256 of the workloads that count here, among those of the charter; by default all of those."""
    snp_floor: SnpFloor | None = None
    """Without it no SEV-SNP report counts."""
    vmpl_max: Annotated[int, Field(ge=0, le=3)] = 0
    tcb_statuses: tuple[str, ...] = ("UpToDate",)
    refused_advisories: tuple[str, ...] = ()


class ListenSettings(BaseModel):
    """A port for people of this organisation, TLS 1.3: tokens and OIDC only, `api.token` is refused there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str
    """host:port to bind; port 0 takes a free one."""
    certificate: Path
    """PEM chain; a relative path is below the node's home."""
    key: Path
    """PEM key, 0600."""


class NodeSettings(BaseModel):
    """One node's settings; `home` is where they were read from and is not part of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(exclude=True)
    org: str
    consortium: str
    title: str
    owner: str
    coordinator: str
    """Where the node dials, host:port."""
    coordinators: tuple[Address, ...] = Field(default=(), max_length=16)
    """Further addresses of the same coordinator (its replicas), dialled in turn when one is out of reach."""
    log_key: str
    """Ed25519 key of the coordinator's log, base64 of 32 bytes, as received at enrolment."""
    genesis: str | None = None
    """Genesis digest as typed by the admin at `join`; None for a founder, who types it when signing."""
    isolation: Literal["process", "sandbox", "container", "best"] = "best"
    engine: Literal["embedded", "opa"] = "embedded"
    opa_url: str | None = None
    consortium_opa_url: str | None = None
    """With engine opa, the server that holds the consortium's bundle; by default the embedded engine asks it."""
    require_signed_bundle: bool = False
    """Whether only a policy folder that `comity policy sign` has signed as it is may decide."""
    decision_log: DecisionLogLimits = DecisionLogLimits()
    aggregation: Literal["plain", "lead-key", "masked", "threshold"] = "threshold"
    """The profile that this organisation's own proposals ask for where its people name none."""
    limits: Limits = Limits()
    oidc: OidcSettings | None = None
    listen: ListenSettings | None = None
    attestation: AttestationSettings | None = None
    """How this node shows evidence and judges that of others; without it the term is refused."""
    metrics: MetricsSettings = MetricsSettings()
    traces: TraceSettings = TraceSettings()

    @field_validator("org")
    @classmethod
    def _org(cls, value: str) -> str:
        try:
            return ids.org_id(value)
        except ComityError as error:
            raise ValueError(error.detail) from error

    @field_validator("log_key")
    @classmethod
    def _log_key(cls, value: str) -> str:
        if len(base64.b64decode(value, validate=True)) != LOG_KEY_BYTES:
            raise ValueError("log_key is base64 of 32 bytes")
        return value

    @classmethod
    def load(cls, home: Path) -> NodeSettings:
        """Read `<home>/node.json`. Raises `NOT_FOUND` before `join`, `MALFORMED` with the field that is wrong."""
        path = home / "node.json"
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise ComityError(ErrorCode.NOT_FOUND, NO_NODE) from error
        if len(data) > SETTINGS_BYTES_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "node.json", limit_bytes=SETTINGS_BYTES_MAX)
        try:
            return cls(home=home, **json.loads(data))
        except (ValueError, TypeError, ValidationError) as error:
            raise ComityError(ErrorCode.MALFORMED, f"node.json: {_first_complaint(error)}") from error

    def save(self) -> None:
        """Write `<home>/node.json` atomically, mode 0600."""
        write_private(self.home / "node.json", self.model_dump_json(indent=2).encode() + b"\n")

    @property
    def log_key_bytes(self) -> bytes:
        """The log's Ed25519 key, 32 bytes."""
        return base64.b64decode(self.log_key, validate=True)

    @property
    def spiffe_id(self) -> str:
        """This node's SPIFFE id."""
        return ids.spiffe_org(self.consortium, self.org)

    @property
    def keys_folder(self) -> Path:
        """Private keys and TLS files, 0700."""
        return self.home / "keys"

    @property
    def policy_folder(self) -> Path:
        """The organisation's own rules."""
        return self.home / "policy"

    @property
    def consortium_policy_file(self) -> Path:
        """The consortium's bundle, as `comity policy adopt` keeps it."""
        return self.policy_folder / "consortium" / "bundle.tar.gz"

    @property
    def decisions_file(self) -> Path:
        """The decision log's database."""
        return self.home / "decisions.db"

    @property
    def datasets_file(self) -> Path:
        """The dataset catalogue."""
        return self.home / "datasets.json"

    @property
    def journal_file(self) -> Path:
        """The journal's database."""
        return self.home / "journal.db"

    @property
    def payloads_folder(self) -> Path:
        """Sealed payloads by digest."""
        return self.home / "payloads"

    @property
    def apps_folder(self) -> Path:
        """Unpacked app bundles by digest."""
        return self.home / "apps"

    @property
    def runs_folder(self) -> Path:
        """Scratch space of runs."""
        return self.home / "runs"

    @property
    def results_folder(self) -> Path:
        """Results that this organisation keeps."""
        return self.home / "results"

    @property
    def socket_file(self) -> Path:
        """The local API's Unix socket, 0600."""
        return self.home / "api.sock"

    @property
    def token_file(self) -> Path:
        """The local API's bearer token, 0600."""
        return self.home / "api.token"

    @property
    def oidc_resolved(self) -> OidcSettings | None:
        """The identity provider, its files named in full."""
        if self.oidc is None or self.oidc.ca_file is None:
            return self.oidc
        return self.oidc.model_copy(update={"ca_file": self.home / self.oidc.ca_file})

    def make_folders(self) -> None:
        """Create the home and the folders below it, 0700 each."""
        folders = (self.payloads_folder, self.apps_folder, self.runs_folder, self.results_folder)
        for folder in (self.home, *folders):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def write_private(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash leaves the old or the new file, readable by the owner only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:  # also Ctrl-C leaves no half a file
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _first_complaint(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return "not valid JSON of the expected form"
