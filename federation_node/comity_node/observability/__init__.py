"""What a node tells of itself, to its own organisation: its metrics, and how its gauges are read."""
