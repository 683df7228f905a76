import sys
from pathlib import Path

import pytest

from comity_crypto.keys import OrgKeys

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


@pytest.fixture(scope="session")
def alice() -> OrgKeys:
    return OrgKeys.generate()


@pytest.fixture(scope="session")
def bob() -> OrgKeys:
    return OrgKeys.generate()
