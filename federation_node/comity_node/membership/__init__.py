"""Becoming and staying a member: joining by token, inviting others, changing the TLS key."""
