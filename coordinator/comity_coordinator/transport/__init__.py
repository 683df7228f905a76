"""The wire edge: identity, the stream of every node, relaying, and the spool of sealed payloads."""
