"""Regenerate the code beside the .proto files: the only way to make it (run `make protos`).

The versions of grpcio-tools and mypy-protobuf in constraints.txt decide the bytes; CI regenerates and compares.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent


PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(target: Path) -> int:
    """Generate all of package comity.v1 below `target`; return protoc's exit status."""
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "comity" / "v1").glob("*.proto"))
    include = Path(protoc.__file__).resolve().parent / "_proto"
    outputs = [f"--{name}={target}" for name in ("python_out", "grpc_python_out")]
    outputs += [f"--{name}=quiet:{target}" for name in ("mypy_out", "mypy_grpc_out")]
    return int(protoc.main(["protoc", f"-I{ROOT}", f"-I{include}", *outputs, *sources]))


def generated(root: Path) -> dict[str, bytes]:
    """Return the generated files below `root` by name."""
    return {path.name: path.read_bytes() for pattern in PATTERNS for path in (root / "comity" / "v1").glob(pattern)}


def check() -> int:
    """Return 0 if the committed code is what the .proto files give, else say which files differ and return 1."""
    with tempfile.TemporaryDirectory() as folder:
        status = generate(Path(folder))
        fresh, committed = generated(Path(folder)), generated(ROOT)
    stale = sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))
    if stale:
        print(f"generated code is stale: {', '.join(stale)}; run `make protos` and commit", file=sys.stderr)
    return status or bool(stale)


def replace() -> int:
    """Put fresh code in the place of the committed one, file by file: whoever imports meanwhile finds either."""
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        status = generate(Path(folder))
        if status:
            return status
        fresh = Path(folder) / "comity" / "v1"
        for name in generated(ROOT).keys() - generated(Path(folder)).keys():
            (ROOT / "comity" / "v1" / name).unlink()
        for name in generated(Path(folder)):
            (fresh / name).replace(ROOT / "comity" / "v1" / name)
    return 0


def main() -> int:
    """Regenerate in place, or compare with `--check`."""
    if "--check" in sys.argv[1:]:
        return check()
    return replace()


if __name__ == "__main__":
    sys.exit(main())
