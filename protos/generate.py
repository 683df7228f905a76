"""Regenerate the code beside the .proto files: the only way to make it (run `make protos`).

The versions of grpcio-tools and mypy-protobuf in constraints.txt decide the bytes; CI regenerates and compares.
"""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent


def main() -> int:
    """Generate all of package comity.v1; return protoc's exit status."""
    for pattern in ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi"):
        for stale in (ROOT / "comity" / "v1").glob(pattern):
            stale.unlink()
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "comity" / "v1").glob("*.proto"))
    include = Path(protoc.__file__).resolve().parent / "_proto"
    outputs = [f"--{name}={ROOT}" for name in ("python_out", "mypy_out", "grpc_python_out", "mypy_grpc_out")]
    return int(protoc.main(["protoc", f"-I{ROOT}", f"-I{include}", *outputs, *sources]))


if __name__ == "__main__":
    sys.exit(main())
