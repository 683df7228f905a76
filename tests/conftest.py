"""For every test: the wire's TLS rule is in the environment before anything imports gRPC."""

import comity as comity
