"""Private set intersection as a step of a run: two organisations, two orders, one result (docs/intersection.md)."""
