"""Checkpoints and signed notes: form, signatures, cosignatures, hostile notes."""

import base64

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto import merkle, notes
from comity_crypto.notes import Checkpoint, cosign_note, sign_note, verify_cosignature, verify_note

NAME = "med.example/log"
POINT = Checkpoint(NAME, 12, merkle.leaf_hash(b"root"))


@pytest.fixture
def note(alice):
    return sign_note(POINT.text(), NAME, alice)


def _code(call) -> ErrorCode:
    with pytest.raises(ComityError) as caught:
        call()
    return caught.value.code


def test_a_checkpoint_comes_back(note, alice):
    assert verify_note(note, NAME, alice.public.statement) == POINT
    lines = note.split("\n")
    assert lines[:4] == [NAME, "12", base64.b64encode(POINT.root).decode(), ""]
    assert lines[4].startswith(f"— {NAME} ")


def test_other_keys_names_and_texts_are_refused(note, alice, bob):
    key = alice.public.statement
    assert _code(lambda: verify_note(note, NAME, bob.public.statement)) is ErrorCode.SIGNATURE_INVALID
    assert _code(lambda: verify_note(note, "other", key)) is ErrorCode.SIGNATURE_INVALID
    assert _code(lambda: verify_note(note.replace("\n12\n", "\n13\n"), NAME, key)) is ErrorCode.SIGNATURE_INVALID
    foreign = sign_note(POINT.text(), "other", alice)
    assert _code(lambda: verify_note(foreign, "other", key)) is ErrorCode.SIGNATURE_INVALID


def test_unknown_signatures_are_ignored_and_doubled_ones_refused(note, alice, bob):
    key = alice.public.statement
    line = note.split("\n\n")[1]
    stranger = sign_note(POINT.text(), "stranger", bob).split("\n\n")[1]
    assert verify_note(note + stranger, NAME, key) == POINT
    head = note.split("\n\n")[0]
    assert verify_note(f"{head}\n\n{stranger}{line}", NAME, key) == POINT
    assert _code(lambda: verify_note(note + line, NAME, key)) is ErrorCode.SIGNATURE_INVALID


def test_cosignatures_carry_a_time(note, alice, bob):
    cosigned = cosign_note(note, "witness-1", bob, 1_800_000_000)
    assert verify_note(cosigned, NAME, alice.public.statement) == POINT
    assert verify_cosignature(cosigned, "witness-1", bob.public.statement) == 1_800_000_000
    twice = cosign_note(cosigned, "witness-1", bob, 1_800_000_010)
    assert verify_cosignature(twice, "witness-1", bob.public.statement) == 1_800_000_010
    for name, keys in (("witness-2", bob), ("witness-1", alice)):
        assert (
            _code(lambda name=name, keys=keys: verify_cosignature(cosigned, name, keys.public.statement))
            is ErrorCode.SIGNATURE_INVALID
        )
    changed = cosigned.replace("\n12\n", "\n13\n")
    assert _code(lambda: verify_cosignature(changed, "witness-1", bob.public.statement)) is ErrorCode.SIGNATURE_INVALID


def test_a_plain_signature_is_no_cosignature(note, alice):
    assert _code(lambda: verify_cosignature(note, NAME, alice.public.statement)) is ErrorCode.SIGNATURE_INVALID


def test_changed_time_breaks_a_cosignature(note, bob):
    cosigned = cosign_note(note, "w", bob, 5)
    head, line = cosigned.rstrip("\n").rsplit(" ", 1)
    blob = bytearray(base64.b64decode(line))
    blob[11] ^= 1
    changed = f"{head} {base64.b64encode(blob).decode()}\n"
    assert _code(lambda: verify_cosignature(changed, "w", bob.public.statement)) is ErrorCode.SIGNATURE_INVALID


@pytest.mark.parametrize(
    "change",
    [
        lambda note: "",
        lambda note: note.rstrip("\n"),
        lambda note: note.replace("\n\n", "\n"),
        lambda note: note + "\n",
        lambda note: note + "not a signature\n",
        lambda note: note.replace("—", "-"),
        lambda note: note.replace("\n12\n", "\n12\t\n"),
        lambda note: note.replace("\n12\n", "\n12\r\n"),
        lambda note: note + "— a b c\n",
        lambda note: note + "— a AAAA\n",
        lambda note: note + "— a+b AAAAAAAA\n",
        lambda note: note + "— w AAAAAAAA\n" * 70,
        lambda note: note + "x" * 70_000,
        lambda note: note.replace("\n12\n", "\n\ud800\n"),
    ],
)
def test_hostile_notes_are_refused(note, alice, change):
    assert _code(lambda: verify_note(change(note), NAME, alice.public.statement)) is ErrorCode.MALFORMED


ROOT = base64.b64encode(POINT.root).decode()


@pytest.mark.parametrize(
    "text",
    [
        f"{NAME}\n012\n{ROOT}\n",
        f"{NAME}\n-1\n{ROOT}\n",
        f"{NAME}\n١٢\n{ROOT}\n",
        f"{NAME}\n9999999999999999\n{ROOT}\n",
        f"{NAME}\n12\n{ROOT}",
        f"{NAME}\n12\n{ROOT}\nextension\n",
        f"{NAME}\n12\n{ROOT[:-2]}==\n",
        f"\n12\n{ROOT}\n",
        f"a b\n12\n{ROOT}\n",
        f"{NAME}\n0\n{ROOT}\n",
    ],
)
def test_odd_checkpoints_are_refused(text):
    assert _code(lambda: Checkpoint.parse(text)) is ErrorCode.MALFORMED


def test_the_empty_log_has_one_checkpoint():
    empty = Checkpoint(NAME, 0, merkle.EMPTY_ROOT)
    assert Checkpoint.parse(empty.text()) == empty


def test_what_cannot_be_in_a_note_is_not_signed(alice):
    for text, name in (("no newline", NAME), ("tab\there\n", NAME), ("text\n", "a b"), ("text\n", "a+b"), ("x\n", "")):
        assert _code(lambda text=text, name=name: sign_note(text, name, alice)) is ErrorCode.MALFORMED
    assert _code(lambda: sign_note("x\n", NAME, b"short")) is ErrorCode.KEY_UNREADABLE


def test_key_ids_differ_by_name_and_kind(alice):
    key = alice.public.statement
    assert len({notes.key_id("a", key), notes.key_id("b", key), notes.key_id("a", key, cosignature=True)}) == 3
