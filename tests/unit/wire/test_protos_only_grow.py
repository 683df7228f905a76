"""The wire only grows: what `released_fields.json` names is there with the same number and type.

So two neighbouring versions understand each other (docs/operator.md, "Upgrade"). At a release the file is written anew:
`python tests/unit/wire/test_protos_only_grow.py`.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

RELEASED = Path(__file__).with_name("released_fields.json")
PROTOS = Path(__file__).resolve().parents[3] / "protos" / "comity" / "v1"


def spelt() -> dict[str, list[str]]:
    """Return every message's fields and every service's methods, a line each."""
    found: dict[str, list[str]] = {}
    for path in sorted(PROTOS.glob("*.proto")):
        file = import_module(f"comity.v1.{path.stem}_pb2").DESCRIPTOR
        assert not file.enum_types_by_name, "spell enums too"
        for message in file.message_types_by_name.values():
            assert not message.nested_types, "spell nested messages too"
            found[message.full_name] = [
                f"{each.number} {each.name}: {'repeated ' if each.is_repeated else ''}"
                f"{each.message_type.full_name if each.message_type else each.type}"
                f"{f' in {each.containing_oneof.name}' if each.containing_oneof else ''}"
                for each in sorted(message.fields, key=lambda field: field.number)
            ]
        for service in file.services_by_name.values():
            found[service.full_name] = [
                f"{each.name}: {'stream ' if each.client_streaming else ''}{each.input_type.full_name} -> "
                f"{'stream ' if each.server_streaming else ''}{each.output_type.full_name}"
                for each in service.methods
            ]
    return found


def test_nothing_that_was_released_is_gone_or_means_something_else() -> None:
    now, released = spelt(), json.loads(RELEASED.read_bytes())
    lost = {name: sorted(set(lines) - set(now.get(name, ()))) for name, lines in released.items()}
    assert {name: lines for name, lines in lost.items() if lines} == {}
    assert set(released) <= set(now)
    assert sum(map(len, released.values())) > 100, "the file names them all"


if __name__ == "__main__":
    RELEASED.write_text(json.dumps(spelt(), indent=1, sort_keys=True) + "\n")
