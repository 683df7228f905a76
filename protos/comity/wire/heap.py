"""The garbage collector in long-lived processes.

What start-up built (modules, tables, compiled schemas) lives as long as the process; to look through it for cycles at
each turn of the collector costs more than what is found there. Documents are trees: reference counts free them.
"""

from __future__ import annotations

import gc

# Allocations between two looks at the young; CPython's 700 is less than one document of fifty parties.
YOUNG_OBJECTS = 20_000
YOUNG_TURNS, MIDDLE_TURNS = 20, 20


def settle() -> None:
    """Leave what exists now out of all later collections, and collect the young less often; once, after start-up."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, YOUNG_TURNS, MIDDLE_TURNS)
