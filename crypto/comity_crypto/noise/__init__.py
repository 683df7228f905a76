"""Distributed differential privacy: exact discrete noise, its size, and what it costs of a budget."""
