"""For every end-to-end test: `harness`, the processes of a consortium, can be imported."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
