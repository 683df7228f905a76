"""What coordinator and node tell of themselves: counters, traces, what a log line is about (docs/observability.md)."""
