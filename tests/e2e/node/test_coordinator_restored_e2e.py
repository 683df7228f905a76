"""A real coordinator loses its folder: an old backup, a member's export and tokens bring the consortium back."""

from __future__ import annotations

import shutil

import pytest


@pytest.mark.slow
def test_a_coordinator_comes_back_from_an_old_backup(cast) -> None:
    orgs = ("hospital-a", "hospital-b")
    name = cast.found(*orgs)
    home, backup = cast.home("coordinator"), cast.folder / "backup"
    taken = cast.ok("coordinator", "backup", str(home), str(backup), "--keys")  # while it runs
    wish = {"settings": {"max_checkpoint_age_s": "700"}, "reason": "said after the backup"}
    cast.api("hospital-a").post("/v1/charter/proposals", wish)
    export, seen = cast.folder / "ledger.jsonl", cast.folder / "seen"

    def grown() -> bool:
        cast.ok("ledger", "export", str(export), "--home", str(cast.home("hospital-a")))
        return export.read_bytes().count(b"\n") - 1 > taken["size"]

    cast.wait(grown, "the ledger went on")
    seen.write_text(cast.api("hospital-a").get("/v1/ledger")["checkpoint"])
    cast.stop("coordinator")
    shutil.rmtree(home)

    # The backup alone is behind what a member has seen, and says so.
    behind = cast.run("coordinator", "restore", str(backup), str(cast.home("trial")), "--seen", str(seen), "--json")
    assert behind.returncode == 1
    assert f"the backup ends at {taken['size']}: nodes will report a rollback" in behind.stdout

    done = cast.ok(
        *("coordinator", "restore", str(backup), str(home), "--rejoin"),
        *("--export", str(export), "--genesis", name, "--seen", str(seen)),
    )
    assert done["lost"] == []
    assert done["entries_added"] == done["size"] - taken["size"] > 0
    assert sorted(done["tokens"]) == list(orgs)
    cast.start("coordinator")
    for org in orgs:
        cast.stop(org)
        cast.ok("node", "adopt", "-", "--home", str(cast.home(org)), stdin=done["tokens"][org] + "\n")
    cast.start(*orgs)
    for org in orgs:
        cast.connected(org)
        assert cast.status(org)["genesis"] == name
        assert cast.api(org).get("/v1/ledger")["incidents"] == []
    # The log goes on: what is invited and said now is entered behind what was there.
    cast.ok("coordinator", "ledger", "fsck", str(home))
