"""Negotiation at the node: propose, answer by one's own policy, sign what is at least as strict as one's own terms."""
