"""This organisation's own next keys: made before they are proposed, used once the charter names them.

Rules:
1. new keys lie beside the present ones (`keys/next`), and are made once: proposing again proposes the same;
2. the switch happens when a charter that this node has verified names them: on disk first, then in this process; after
   a crash in between, the start finishes it;
3. the former keys are kept (`keys/former-….json`) and used no more.
"""

from __future__ import annotations

import structlog

from comity_crypto.keys import MemberKeys, OrgKeys
from comity_crypto.keystore import FileKeyStore
from comity_node.context import NodeContext

log = structlog.get_logger("comity.node.keys")


class OwnKeys:
    """The present and the next keys of this node."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node
        self._next = FileKeyStore(node.settings.keys_folder / "next")

    def prepare(self) -> MemberKeys:
        """Return the public part of the next keys, made now unless there are some. Raises `KEY_UNREADABLE`."""
        keys = self._next.load() if self._next.exists() else self._next.create()
        return keys.public

    def are_ours(self, public: MemberKeys) -> bool:
        """Tell whether these are our present keys, or the next ones that we made."""
        return public == self._node.keys.public or (self._next.exists() and public == self._next.load().public)

    def switch(self) -> bool:
        """Use the next keys if the charter in force names them; True if that changed something."""
        charter, me = self._node.charters.current(), self._node.settings.org
        if charter is None or me not in charter.organisations or not self._next.exists():
            return False
        if charter.member(me).keys != self._next.load().public:
            return False
        keys: OrgKeys = FileKeyStore(self._node.settings.keys_folder).succeed(self._next)
        self._node.take_keys(keys)
        log.info("keys.switched", fingerprint=keys.public.fingerprint())
        return True
