"""A real node's journal goes back in time: its stream is refused until `comity node recover`, and then goes on."""

from __future__ import annotations

import shutil

import pytest


@pytest.mark.slow
def test_a_restored_journal_is_noticed_and_recovered(cast) -> None:
    name = cast.found("hospital-a", "hospital-b")
    home = cast.home("hospital-b")
    cast.connected("hospital-b")
    cast.stop("hospital-b")
    backup = cast.folder / "backup"
    backup.mkdir()
    for path in home.glob("journal.db*"):
        shutil.copy(path, backup / path.name)

    cast.start("hospital-b")
    cast.connected("hospital-b")
    app = cast.folder / "app"
    shutil.copytree("benchmarks/dummy_app", app, ignore=shutil.ignore_patterns("__pycache__"))
    cast.api("hospital-b").post(
        "/v1/datasets", {"name": "patients", "source": str(_data(cast)), "classification": "public"}
    )
    wish = {"app": str(app), "purpose": "research", "dataset": "patients", "rounds": 1, "aggregation": "plain"}
    cast.api("hospital-b").post("/v1/proposals", wish)
    cast.wait(lambda: cast.status("hospital-b")["outbox"]["waiting"] == 0, "the proposal is taken")
    sent = cast.status("hospital-b")["outbox"]["sent_seq"]
    assert sent > 0
    refused = cast.refused("node", "recover", "--home", str(home))
    assert refused["code"] == "CONFLICT"  # not while the node runs
    cast.stop("hospital-b")

    for path in home.glob("journal.db*"):
        path.unlink()
    for path in backup.iterdir():
        shutil.copy(path, home / path.name)
    cast.start("hospital-b")
    cast.wait(
        lambda: (cast.status("hospital-b")["link"]["error"] or {}).get("code") == "JOURNAL_BEHIND", "it is noticed"
    )
    assert not cast.status("hospital-b")["link"]["connected"]
    cast.stop("hospital-b")

    done = cast.ok("node", "recover", "--home", str(home))
    assert done["agreements"] == 0
    cast.start("hospital-b")
    cast.connected("hospital-b")
    status = cast.status("hospital-b")
    assert status["genesis"] == name
    assert status["outbox"]["sent_seq"] >= sent
    # The stream goes on in both directions: a new proposal is taken and answered.
    made = cast.api("hospital-b").post("/v1/proposals", wish)
    cast.wait(
        lambda: cast.api("hospital-b").get(f"/v1/proposals/{made['proposal_id']}")["news"], "the new proposal is known"
    )


def _data(cast):
    path = cast.home("hospital-b") / "patients.csv"
    path.write_text("age,outcome\n" + "".join(f"{30 + row},{row % 2}\n" for row in range(40)))
    return path
