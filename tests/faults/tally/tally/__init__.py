"""A deterministic app for the fault tests: a chain of exact steps, each of which depends on all before."""
