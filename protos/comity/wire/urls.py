"""URLs that may carry what must not be read or changed on the way."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from comity.wire.errors import ComityError, ErrorCode


def https_or_loopback(url: str, what: str) -> str:
    """Return `url` if it is https, or http to this very machine. Raises `MALFORMED`, naming `what` was meant."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise ComityError(ErrorCode.MALFORMED, f"{what} is reached by https") from None
    plain = parts.scheme == "http" and _is_loopback(host)
    if not (plain or (parts.scheme == "https" and host)) or parts.username or parts.password:
        raise ComityError(ErrorCode.MALFORMED, f"{what} is reached by https")
    return url


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
