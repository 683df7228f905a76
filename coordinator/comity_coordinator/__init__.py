"""The operator's side: negotiation, relay, ledger and time, without a key to any payload."""

# Before anything here imports gRPC: it sets the TLS rule.
import comity as comity
