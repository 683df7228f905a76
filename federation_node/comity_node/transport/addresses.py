"""Where the coordinator is reached: several addresses of one coordinator (its replicas), of which one is in use.

The stream decides: what it cannot reach is left for the next one, round and round; calls and payloads follow it, so
that what this node uploads lies where its stream is.
"""

from __future__ import annotations

from collections.abc import Sequence


class Addresses:
    """A ring of host:port."""

    def __init__(self, first: str, others: Sequence[str] = ()) -> None:
        """`first` is tried first; one that is named twice counts once."""
        self._ring = tuple(dict.fromkeys((first, *others)))
        self._at = 0

    @property
    def current(self) -> str:
        """The address in use."""
        return self._ring[self._at]

    def failed(self, address: str) -> None:
        """Go on to the next one, unless that has happened already."""
        if address == self.current:
            self._at = (self._at + 1) % len(self._ring)
