"""Keys that are rotated while a run is under way: it goes on where what was signed still counts, or ends by name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from comity_crypto.keys import OrgKeys

SMALL = {"params": 100, "num-server-rounds": 3}


def rotating(rig, org, kind, sender):
    """Put new keys of `org` into force, everywhere at once, when `sender` sends its first message of `kind`."""
    before = rig.charter

    def look(sent, by, receiver):
        if (sent, by) == (kind, sender) and rig.charter is before:
            fresh = OrgKeys.generate()
            members = tuple(replace(each, keys=fresh.public) if each.org == org else each for each in before.members)
            rig.charter = replace(before, version=2, previous=before.digest, members=members)
            for node in rig.nodes.values():
                node.charters.former = before
                node.charters.charter = rig.charter
            rig.nodes[org].context.take_keys(fresh)
        return False

    return look


@pytest.mark.parametrize(
    ("org", "kind", "sender", "lost"),
    [
        # The order on its way is sealed to the party's former key.
        ("hospital-b", "order", "hospital-a", {"org": "hospital-b", "code": "SEAL_BROKEN"}),
        # The reply on its way is sealed to the lead's former key.
        ("hospital-a", "reply", "hospital-c", {"org": "hospital-c", "code": "SEAL_BROKEN"}),
        # The reply on its way is signed by the party's former key.
        pytest.param(
            *("hospital-b", "reply", "hospital-b", {"org": "hospital-b", "code": "TIMEOUT"}), marks=pytest.mark.slow
        ),
    ],
)
async def test_what_was_on_its_way_is_lost_by_name_and_the_run_goes_on(rig, dummy, org, kind, sender, lost):
    agreement = rig.agree(dummy, rounds=3, config=SMALL, timeout_s=4)
    rig.board.drop = rotating(rig, org, kind, sender)
    finished = await rig.finish(rig.board.prepare(agreement), 50)
    assert rig.charter.version == 2, "it was rotated"
    assert finished["state"] == "COMPLETED"
    first, *rest = finished["manifest"]
    # Whatever else was on its way at that moment is lost as well, by name; everybody is on one side or the other.
    assert lost in first["dropped"]
    assert {each["code"] for each in first["dropped"]} == {lost["code"]}
    assert sorted([*first["participants"], *(each["org"] for each in first["dropped"])]) == sorted(rig.nodes)
    assert rest == [{"round": n, "participants": list(rig.nodes), "dropped": []} for n in (2, 3)]


@pytest.mark.slow
async def test_an_order_that_the_leads_former_key_signed_ends_the_run_by_name(rig, dummy):
    agreement = rig.agree(dummy, rounds=3, config=SMALL, timeout_s=4)
    rig.board.drop = rotating(rig, "hospital-a", "order", "hospital-a")
    finished = await rig.finish(rig.board.prepare(agreement), 50)
    assert (finished["state"], finished["error"]["code"]) == ("FAILED", "PARTICIPANTS_TOO_FEW")
    assert {"org": "hospital-a", "code": "SIGNATURE_INVALID"} in finished["manifest"][0]["dropped"]
