"""Where a term alone asks for a person, the organisation's settings say who: at each question, without a restart."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from comity_crypto.keys import OrgKeys
from comity_node.context import Services
from comity_node.policy.consortium import ConsortiumPolicy
from comity_node.policy.engine import ReloadablePolicy
from comity_node.policy.recorded import RecordedPolicy
from comity_node.reviews.service import build
from comity_node.settings import NodeSettings
from comity_policies.bundle import write_defaults
from comity_policies.decisions import ReviewNeed


async def test_the_settings_in_force_say_who_looks(tmp_path: Path) -> None:
    keys = OrgKeys.generate()
    settings = NodeSettings(
        home=tmp_path, org="hospital-a", consortium="demo", title="A", owner="A", coordinator="127.0.0.1:1",
        log_key=base64.b64encode(keys.public.statement).decode(),
    )  # fmt: skip
    write_defaults(settings.policy_folder, "hospital-a")
    own = ReloadablePolicy(settings, lambda: keys.public.statement)
    log: Any = None
    node: Any = SimpleNamespace(policy=RecordedPolicy(own, None, log), services=Services())
    try:
        reviews = build(node)
        assert reviews.need() == ReviewNeed("reviewer", 1)
        path = settings.policy_folder / "data.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "reviews": {"role": "admin", "approvals": 2}}))
        assert reviews.need() == ReviewNeed("reviewer", 1)
        await own.reload()
        assert reviews.need() == ReviewNeed("admin", 2)
        consortium = ConsortiumPolicy(settings, lambda: None)
        node.policy.consortium = consortium
        assert reviews.need() == ReviewNeed("admin", 2)
        stricter = {**own.bundle.settings, "reviews": {"role": "reviewer", "approvals": 3}}
        consortium.bundle = replace(own.bundle, settings=stricter)
        assert reviews.need() == ReviewNeed("admin", 3), "the consortium's bundle asks for more people, of our role"
    finally:
        own.close()
