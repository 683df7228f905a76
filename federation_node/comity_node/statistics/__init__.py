"""Federated statistics: a node's own arithmetic over its own records, summed under whatever profile was agreed."""
