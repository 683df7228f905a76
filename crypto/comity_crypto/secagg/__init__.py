"""Secure aggregation (being written)."""
