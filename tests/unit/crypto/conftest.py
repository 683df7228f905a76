import pytest

from comity_crypto.keys import OrgKeys


@pytest.fixture(scope="session")
def alice() -> OrgKeys:
    return OrgKeys.generate()


@pytest.fixture(scope="session")
def bob() -> OrgKeys:
    return OrgKeys.generate()
