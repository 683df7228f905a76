"""Settings about the charter: who may propose by role, and whether only published apps run."""

from __future__ import annotations

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_policies import settings

GOOD = settings.defaults("hospital-a")


def test_the_default_is_as_permissive_as_before() -> None:
    assert (GOOD["published_only"], GOOD["proposers"]) == (False, ["*"])


@pytest.mark.parametrize("proposers", [["role:researcher"], ["*", "role:x-1"], ["hospital-a", "role:a"], []])
def test_proposers_by_name_and_by_role(proposers: list[str]) -> None:
    assert settings.check({**GOOD, "proposers": proposers})["proposers"] == proposers


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("proposers", ["role:"]),
        ("proposers", ["role:Two Words"]),
        ("proposers", ["role:*"]),
        ("proposers", [7]),
        ("published_only", "true"),
        ("published_only", 1),
        ("published_only", None),
    ],
)
def test_odd_ones_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ComityError, match=key) as refused:
        settings.check({**GOOD, key: value})
    assert refused.value.code is ErrorCode.BUNDLE_INVALID
