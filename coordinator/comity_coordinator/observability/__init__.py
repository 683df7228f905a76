"""What the coordinator tells of itself: its metrics, and how its gauges are read."""
