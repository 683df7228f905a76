"""What an operator or an organisation sets: where metrics are asked for, where traces go."""

from __future__ import annotations

import ipaddress
import os
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# As the OpenTelemetry specification names them (Environment Variable Specification).
_COLLECTORS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class MetricsSettings(BaseModel):
    """A listener for Prometheus, off by default: plain HTTP, `GET /metrics` and nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: str | None = None
    """host:port; port 0 takes a free one."""
    exposed: bool = False
    """Whether `listen` may be another address than this computer's own: then a firewall says who reads it."""

    @field_validator("listen")
    @classmethod
    def _host_and_port(cls, value: str | None) -> str | None:
        if value is not None:
            host, port = address_of(value)
            ipaddress.ip_address(host)
            if not port.isdigit() or int(port) > 65_535:
                raise ValueError("an address reads host:port, the host as a number")
        return value

    @model_validator(mode="after")
    def _loopback(self) -> MetricsSettings:
        if self.listen and not self.exposed and not ipaddress.ip_address(address_of(self.listen)[0]).is_loopback:
            raise ValueError("metrics are served on loopback unless `exposed` says otherwise")
        return self


class TraceSettings(BaseModel):
    """Traces, off unless `endpoint` or OTEL_EXPORTER_OTLP_ENDPOINT names a collector of ours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str | None = Field(default=None, max_length=2048)
    """An OTLP/HTTP collector, as http://127.0.0.1:4318."""
    sample: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The share of the traces begun here that is recorded."""
    accept_foreign: bool = True
    """Whether traces that others began are gone on with; otherwise ours begin anew at each message of theirs."""
    foreign_per_minute: Annotated[int, Field(ge=0)] = 6_000
    """How many steps of others' traces are recorded in a minute at most, whatever others ask for."""

    @property
    def wanted(self) -> bool:
        """Whether there is a collector, by these settings or by the environment."""
        if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return False
        return bool(self.endpoint or any(os.environ.get(name) for name in _COLLECTORS))

    @field_validator("endpoint")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("a collector's address begins with http:// or https://")
        return value


def address_of(value: str) -> tuple[str, str]:
    """Return (host, port) of `host:port`; an IPv6 host stands in brackets, which are removed."""
    host, _, port = value.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), port
