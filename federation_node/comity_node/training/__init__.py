"""Federated training at the node: orders that others lead, runs that this organisation leads, data, grants, results."""
