"""Generated protobuf and gRPC code of package comity.v1; regenerate with `make protos`."""
