"""Signatures checked together: the first that does not hold is named, with processes and without, and none passes."""

from __future__ import annotations

from typing import NoReturn

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from comity_crypto import signatures
from comity_crypto.signatures import Signatures


class RefusedError(Exception):
    """Carries what was refused."""


def refuse(about: int) -> NoReturn:
    raise RefusedError(about)


KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes_raw()
SIGNED = [(KEY.sign(b"%d" % n), b"%d" % n) for n in range(60)]


def first_refused(processes: int, bad: set[int]) -> int | None:
    with Signatures(processes, refuse) as checks:
        try:
            for n, (signature, message) in enumerate(SIGNED):
                checks.add(PUBLIC, signature, message + (b"!" if n in bad else b""), n)
            checks.settle()
        except RefusedError as error:
            checks.settle()  # says nothing of what came after it
            return int(error.args[0])
    return None


@pytest.mark.parametrize("processes", [0, 2])
def test_the_first_that_does_not_hold_is_refused(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "BATCH_COUNT", 4)
    assert first_refused(processes, set()) is None
    for bad in ({0}, {59}, {41, 13, 12}, {3, 4}):
        assert first_refused(processes, bad) == min(bad)


def test_what_a_lost_process_leaves_is_checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "BATCH_COUNT", 4)
    monkeypatch.setattr(signatures, "_MODULE", "comity_crypto.no_such_module")
    assert first_refused(2, set()) is None
    assert first_refused(2, {33, 50}) == 33


def test_a_process_that_ends_in_between_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "BATCH_COUNT", 2)
    for bad in (None, 8, 31, 59):
        with Signatures(2, refuse) as checks:
            found = None
            try:
                for n, (signature, message) in enumerate(SIGNED):
                    if n == 20:
                        checks._workers[0].kill()
                    checks.add(PUBLIC, signature, message + (b"!" if n == bad else b""), n)
                checks.settle()
            except RefusedError as error:
                found = error.args[0]
        assert found == bad


def test_no_more_batches_wait_than_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "BATCH_COUNT", 1)
    with Signatures(2, refuse) as checks:
        most = 0
        for n, (signature, message) in enumerate(SIGNED):
            checks.add(PUBLIC, signature, message, n)
            most = max(most, len(checks._waiting))
        checks.settle()
    assert most == 2 * signatures.BATCHES_MAX


def test_few_signatures_and_one_core_need_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures.os, "sched_getaffinity", lambda _: set(range(64)))
    assert signatures.processes_for(99, 100) == 0
    assert signatures.processes_for(100, 100) == signatures.PROCESSES_MAX
    monkeypatch.setattr(signatures.os, "sched_getaffinity", lambda _: {0})
    assert signatures.processes_for(100, 100) == 0
