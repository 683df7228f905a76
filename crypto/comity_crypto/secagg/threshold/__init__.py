"""Profile `threshold`: the round's key is the parties' own, and a quorum opens the sum."""
