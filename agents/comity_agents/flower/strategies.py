"""Which strategies cannot work on sums: judged in the ServerApp's process, before its first question.

Under encryption every reply is the same weighted mean. A strategy that compares replies, that samples parties, or that
adds noise for one party's sake would give a wrong model without a word. Known are Flower's own classes and what derives
from them; a strategy of the app's own that needs single updates cannot be known and sees equal ones.
"""

from __future__ import annotations

from typing import Any

from flwr.serverapp import strategy as flower

# Reason -> names of Flower's classes; a name that this version lacks is skipped.
_REFUSED = {
    "single": ("Krum", "MultiKrum", "Bulyan", "FedMedian", "FedTrimmedAvg", "QFedAvg"),
    "opaque": ("FedXgbBagging", "FedXgbCyclic"),
    "noise": (
        "DifferentialPrivacyServerSideFixedClipping",
        "DifferentialPrivacyServerSideAdaptiveClipping",
    ),
}


class StrategyRefusedError(Exception):
    """The strategy cannot work on sums; `reason` is one of `events.REFUSALS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def check_sums(strategy: Any) -> None:
    """Raise `StrategyRefusedError` for a strategy that is known not to work on sums."""
    for reason, names in _REFUSED.items():
        classes = tuple(found for name in names if isinstance(found := getattr(flower, name, None), type))
        if isinstance(strategy, classes):
            raise StrategyRefusedError(reason)
    for name in ("fraction_train", "fraction_evaluate"):
        share = getattr(strategy, name, 1.0)
        # Nothing at all may be asked; a part may not.
        if isinstance(share, int | float) and 0 < share < 1:
            raise StrategyRefusedError("sample")
