"""The bundle in force: exchanged as a whole, signed where it has to be, and never worse than the one before."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keys import OrgKeys
from comity_node.policy.engine import Exchangeable, ReloadablePolicy
from comity_node.settings import NodeSettings
from comity_policies.access import Granted
from comity_policies.bundle import SIGNATURE_FILE, Bundle, shipped_folder, write_defaults
from comity_policies.bundle_signature import sign_bundle
from comity_policies.decisions import Decision, Stage, example

KEYS = OrgKeys.generate()


@pytest.fixture
def settings(tmp_path: Path) -> NodeSettings:
    write_defaults(tmp_path / "policy", "hospital-b")
    return NodeSettings(
        home=tmp_path,
        org="hospital-b",
        consortium="demo",
        title="B",
        owner="B",
        coordinator="127.0.0.1:1",
        log_key=base64.b64encode(KEYS.public.statement).decode(),
    )


@pytest.fixture
def load(settings: NodeSettings) -> Iterator[Callable[..., ReloadablePolicy]]:
    opened: list[ReloadablePolicy] = []

    def make(**changes: Any) -> ReloadablePolicy:
        opened.append(ReloadablePolicy(settings.model_copy(update=changes), lambda: KEYS.public.statement))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def change(settings: NodeSettings, **values: Any) -> None:
    path = settings.policy_folder / "data.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def sign(settings: NodeSettings, keys: OrgKeys = KEYS) -> None:
    bundle = Bundle.load(shipped_folder(), settings.policy_folder)
    statement = sign_bundle(bundle, keys, consortium=settings.consortium, org=settings.org)
    (settings.policy_folder / SIGNATURE_FILE).write_bytes(statement.to_bytes())


async def test_a_bundle_that_does_not_load_changes_nothing(
    settings: NodeSettings, load: Callable[..., ReloadablePolicy]
) -> None:
    policy = load()
    before = policy.bundle_digest
    for broken in ({"min_cohort": "many"}, {"min_cohort": None}, {"unheard_of": 1}):
        text = (settings.policy_folder / "data.json").read_text()
        change(settings, **broken)
        with pytest.raises(ComityError) as caught:
            await policy.reload()
        assert caught.value.code == ErrorCode.BUNDLE_INVALID
        assert (policy.bundle_digest, policy.bundle.digest) == (before, before)
        assert policy.decide(Stage.EGRESS, example(Stage.EGRESS)).bundle_digest == before
        (settings.policy_folder / "data.json").write_text(text)


async def test_a_reload_takes_effect_at_the_next_decision(
    settings: NodeSettings, load: Callable[..., ReloadablePolicy]
) -> None:
    policy = load()
    assert policy.decide(Stage.EGRESS, example(Stage.EGRESS)).allowed
    change(settings, min_cohort=100_000)
    assert policy.decide(Stage.EGRESS, example(Stage.EGRESS)).allowed, "an edited file alone decides nothing"
    digest = await policy.reload()
    decision = policy.decide(Stage.EGRESS, example(Stage.EGRESS))
    assert (decision.decision, decision.bundle_digest) == ("deny", digest)


async def test_only_a_signed_bundle_decides_where_that_is_asked(
    settings: NodeSettings, load: Callable[..., ReloadablePolicy]
) -> None:
    with pytest.raises(ComityError, match="not signed"):
        load(require_signed_bundle=True)
    sign(settings, OrgKeys.generate())
    with pytest.raises(ComityError, match="does not hold"):
        load(require_signed_bundle=True)
    sign(settings)
    policy = load(require_signed_bundle=True)
    before = policy.bundle_digest
    change(settings, min_cohort=1)
    with pytest.raises(ComityError, match="changed after it was signed"):
        await policy.reload()
    assert policy.bundle_digest == before
    sign(settings)
    assert await policy.reload() != before


class Slow:
    """Decides when it is told to, and denies once closed."""

    name = "slow"

    def __init__(self, digest: str) -> None:
        self.bundle_digest = digest
        self.asked, self.go_on = threading.Event(), threading.Event()
        self.closed = False

    def decide(self, stage: Stage, document: dict[str, Any]) -> Decision:
        self.asked.set()
        self.go_on.wait(5)
        return Decision("deny" if self.closed else "allow", bundle_digest=self.bundle_digest)

    def roles(self, document: dict[str, Any]) -> Granted:
        return Granted()

    def close(self) -> None:
        self.closed = True


def test_a_decision_uses_one_bundle_from_beginning_to_end() -> None:
    former, fresh = Slow("0a" * 32), Slow("0b" * 32)
    fresh.go_on.set()
    policy = Exchangeable(former, drain_s=5)
    answers: list[Decision] = []
    asking = threading.Thread(target=lambda: answers.append(policy.decide(Stage.EGRESS, {})))
    asking.start()
    assert former.asked.wait(5)
    changing = threading.Thread(target=lambda: policy.exchange(fresh))
    changing.start()
    former.go_on.set()
    asking.join()
    changing.join()
    assert (answers[0].decision, answers[0].bundle_digest) == ("allow", former.bundle_digest)
    assert former.closed
    assert policy.decide(Stage.EGRESS, {}).bundle_digest == fresh.bundle_digest


def test_an_exchange_does_not_wait_for_ever_and_what_is_late_is_denied() -> None:
    former, fresh = Slow("0a" * 32), Slow("0b" * 32)
    policy = Exchangeable(former, drain_s=0.05)
    answers: list[Decision] = []
    asking = threading.Thread(target=lambda: answers.append(policy.decide(Stage.EGRESS, {})))
    asking.start()
    assert former.asked.wait(5)
    policy.exchange(fresh)
    former.go_on.set()
    asking.join()
    assert answers[0].decision == "deny"
