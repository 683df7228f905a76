"""Profile `lead-key`: the round's key is the lead's."""
