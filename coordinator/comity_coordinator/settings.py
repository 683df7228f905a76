"""The coordinator's settings: `<home>/coordinator.json`, overridden by environment variables `COMITY_COORDINATOR_…`.

The folder: `<home>/{coordinator.json, keys/, comity.db, spool/, temporal/, api.token}`, all private to its user.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from comity.observability.settings import MetricsSettings, TraceSettings
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.ids import org_id

FILE = "coordinator.json"
_FILE_BYTES_MAX = 1 << 16


class CoordinatorSettings(BaseSettings):
    """Settings of one coordinator; nothing secret is among them.

    `address` is what nodes dial (host:port), `listen` what this process binds, `rest_listen` the operator's API on
    loopback; port 0 takes a free one. `opa_url` names an OPA server that holds the consortium's policy bundle; by
    default the embedded engine is asked. `migrate` says whether `up` brings the database's schema forward.
    `replica` names this one among several on one database, which reach it at `replica_address` (by default `listen`).
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="COMITY_COORDINATOR_")

    home: Path
    consortium: str
    address: str
    listen: str
    rest_listen: str = "127.0.0.1:0"
    log_name: str
    server_names: tuple[str, ...] = ()
    database_url: str = Field(default="", repr=False)  # it may carry a password
    database_password_file: Path | None = None
    replica: str = ""
    replica_address: str = ""
    migrate: Literal["auto", "manual"] = "auto"
    opa_url: str = ""
    workflows: Literal["temporal", "timers"] = "temporal"
    spool_total_bytes: int = 16 << 30
    spool_owner_bytes: int = 8 << 30
    spool_payload_bytes: int = 4 << 30
    stop_grace_s: float = 2.0
    metrics: MetricsSettings = MetricsSettings()
    traces: TraceSettings = TraceSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file."""
        return env_settings, init_settings

    @field_validator("consortium")
    @classmethod
    def _consortium(cls, value: str) -> str:
        try:
            return str(org_id(value))
        except ComityError as error:
            raise ValueError(error.detail) from error

    @field_validator("replica")
    @classmethod
    def _replica(cls, value: str) -> str:
        return cls._consortium(value) if value else value

    @field_validator("replica_address")
    @classmethod
    def _replica_address(cls, value: str) -> str:
        return cls._host_and_port(value) if value else value

    @field_validator("address", "listen", "rest_listen")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        host, port = split_address(value)
        if not host or not port.isdigit() or int(port) > 65_535:
            raise ValueError("an address reads host:port")
        return value

    @property
    def database(self) -> str:
        """The database's URL; a file in the folder unless another one is named. Raises `KEY_UNREADABLE`."""
        url = self.database_url or f"sqlite:///{self.home / 'comity.db'}"
        return url if self.database_password_file is None else _with_password(url, self.database_password_file)

    @classmethod
    def load(cls, home: Path) -> CoordinatorSettings:
        """Read the settings of the coordinator in `home`.

        Raises:
            ComityError: `NOT_FOUND` if there is none, `MALFORMED` naming the fields that are wrong.
        """
        path = home / FILE
        try:
            with path.open("rb") as file:
                data = file.read(_FILE_BYTES_MAX + 1)
        except OSError as error:
            raise ComityError(ErrorCode.NOT_FOUND, "no coordinator here; run `comity coordinator init`") from error
        try:
            value = json.loads(data)
            found = cls(**{**value, "home": home.resolve()})
            # The folder that was asked for wins over COMITY_COORDINATOR_HOME, which is for commands without one.
            return found.model_copy(update={"home": home.resolve()})
        except ValidationError as error:
            wrong = ", ".join(".".join(str(part) for part in each["loc"]) for each in error.errors())
            raise ComityError(ErrorCode.MALFORMED, f"{FILE}: {wrong}") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise ComityError(ErrorCode.MALFORMED, f"{FILE} is not a JSON object") from error

    def to_json(self) -> dict[str, Any]:
        """Return what the file holds: everything but where it lies."""
        return self.model_dump(mode="json", exclude={"home"}, exclude_defaults=True)


def _with_password(url: str, file: Path) -> str:
    try:
        password = file.read_text().rstrip("\n")
        return make_url(url).set(password=password).render_as_string(hide_password=False)
    except (OSError, ValueError, ArgumentError):
        # Without its cause: that may quote the URL.
        raise ComityError(ErrorCode.KEY_UNREADABLE, "the database's password, or its URL") from None


def split_address(value: str) -> tuple[str, str]:
    """Return (host, port) of `host:port`; an IPv6 host stands in brackets, which are removed."""
    host, _, port = value.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), port
