"""People at their own organisation's node: who they are, which roles they have, which routes those open."""
