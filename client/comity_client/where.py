"""Which node a command speaks to: the one in `--home`, or one that listens for people (`comity --node URL …`).

Rules:
1. The options before the command (`--node`, `--token-file`, `--ca`) are the variables COMITY_NODE, COMITY_TOKEN_FILE
   and COMITY_NODE_CA: none of them is a secret. Secrets are read from files, never taken from the command line.
2. Without them a command uses the Unix socket and `api.token` of its home, as the organisation's own user.
3. A saved login belongs to one target and is found by its name.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.parse import urlsplit

from comity.wire.errors import ComityError, ErrorCode
from comity_client.output import CA_VARIABLE, NODE_VARIABLE, TOKEN_FILE_VARIABLE
from comity_client.sdk import Node, node_endpoint
from comity_client.transport import Endpoint


def target(home: Path) -> Endpoint:
    """Return where the command's node answers, without credentials. Raises `MALFORMED`."""
    url = os.environ.get(NODE_VARIABLE, "")
    if not url:
        local = node_endpoint(home)
        return Endpoint(url=local.url, uds=local.uds, token_file=None, hint=local.hint)
    ca = os.environ.get(CA_VARIABLE, "")
    return remote(url, None, Path(ca) if ca else None)


def remote(url: str, token_file: Path | None, ca: Path | None = None) -> Endpoint:
    """Return the endpoint of a node that listens at `url`; `ca` holds what its certificate is checked against.

    Raises:
        ComityError: `MALFORMED` for anything but https://host:port.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/") or parts.username or parts.query:
        raise ComityError(ErrorCode.MALFORMED, "a node is named by https://host:port")
    hint = f"is the node up, and does it listen at {parts.netloc}? Log in with: comity --node {url} login"
    return Endpoint(url=f"https://{parts.netloc}", uds=None, token_file=token_file, hint=hint, ca=ca)


def endpoint(home: Path) -> Endpoint:
    """Return where the command's node answers and with which credentials. Raises `MALFORMED`."""
    named = os.environ.get(TOKEN_FILE_VARIABLE, "")
    if not os.environ.get(NODE_VARIABLE) and not named:
        return node_endpoint(home)
    found = target(home)
    return found.with_token(Path(named) if named else login_file(found))


def node(home: Path) -> Node:
    """Return a client of the command's node: `with where.node(home) as node`. Raises as `Node`."""
    return Node(home, endpoint(home))


def login_file(found: Endpoint) -> Path:
    """Return where the login at a target is kept: `~/.comity/logins/`, 0600."""
    name = str(found.uds.resolve()) if found.uds is not None else found.url
    words = found.uds.parent.name if found.uds is not None else urlsplit(found.url).netloc.replace(":", "_")
    tail = hashlib.sha256(name.encode()).hexdigest()[:12]
    return Path.home() / ".comity" / "logins" / f"{words}-{tail}.token"
