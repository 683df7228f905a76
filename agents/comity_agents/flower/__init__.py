"""Unmodified Flower apps in sandboxed processes: bundle, codec, hosts and the node's side of their channels."""
