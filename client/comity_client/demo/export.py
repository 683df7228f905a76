"""Reading a ledger export for the receipt list. It shows what is there; judging it is `comity ledger verify`'s part."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

LINE_BYTES_MAX = 4 << 20
ENTRIES_MAX = 100_000


def receipts(file: Path) -> list[dict[str, Any]]:
    """Return the body of every receipt with its `issuer`, in the ledger's order."""
    found = []
    with file.open("rb") as stream:
        stream.readline(LINE_BYTES_MAX)  # the header
        for _ in range(ENTRIES_MAX):
            line = stream.readline(LINE_BYTES_MAX)
            if not line:
                break
            content = statement(line)["content"]
            if content["kind"] == "receipt":
                found.append({**content["body"], "issuer": content["issuer"]})
    return found


def altered(file: Path, target: Path) -> int:
    """Write a copy in which one receipt claims another egress size; returns the entry's index, -1 if there is none."""
    changed = -1
    with file.open("rb") as stream, target.open("wb") as copy:
        for line in stream:
            entry = json.loads(line)
            if changed < 0 and "statement" in entry and statement(line)["content"]["kind"] == "receipt":
                document = statement(line)
                document["content"]["body"]["egress_bytes"] += 1
                text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
                entry["statement"] = base64.b64encode(text.encode()).decode()
                line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
                changed = int(entry["index"])
            copy.write(line)
    return changed


def statement(line: bytes) -> dict[str, Any]:
    """Return the statement in one line of an export."""
    document: dict[str, Any] = json.loads(base64.b64decode(json.loads(line)["statement"]))
    return document
