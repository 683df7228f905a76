"""The node's way out: it dials the coordinator, and nothing ever dials the node.

TLS 1.3 only: gRPC has no switch for it, so TLS 1.2 is left with a single suite that needs an RSA certificate, which no
party of a consortium has (its certificates are P-256). The variable is read when the gRPC core is first loaded.
"""

import os

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES128-GCM-SHA256"
