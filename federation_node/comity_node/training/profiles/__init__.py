"""Aggregation profiles: how a party's result reaches the lead, and what the lead's app gets to see."""
