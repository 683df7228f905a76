"""The node's way out: it dials the coordinator, and nothing ever dials the node."""

# First of all, because it sets what the gRPC core reads when it is loaded: TLS 1.3 only.
import comity.wire.grpc_errors  # noqa: F401
