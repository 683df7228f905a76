"""The wire: what organisations and the coordinator say to each other. Depends on nothing else of Comity.

The TLS rule of the wire stands here because gRPC reads it once, when it is first imported, and this package is imported
before: gRPC has no setting for the lowest TLS version. The one TLS 1.2 suite left needs an RSA certificate and ours are
P-256, so only TLS 1.3, whose suites the list does not touch, can come about.
"""

import os

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES128-GCM-SHA256"
# A refused handshake is everyday at an open port; what matters of it is logged by ourselves.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
