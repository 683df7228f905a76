"""Reviews: what a policy or a term puts before people of this organisation, and what they decide."""
