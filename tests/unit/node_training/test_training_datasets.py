"""The dataset catalogue: what may be added, and what an app gets of it."""

from __future__ import annotations

import csv
import sqlite3

import numpy as np
import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_node.training.datasets import DatasetCatalogue

ROWS = [[str(30 + n), f"name-{n}", str(n % 2)] for n in range(10)]


@pytest.fixture
def catalogue(tmp_path):
    with (tmp_path / "patients.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["age", "name", "outcome"], *ROWS])
    found = DatasetCatalogue(tmp_path)
    found.add("patients", tmp_path / "patients.csv", classification="pseudonymous")
    return found


def code_of(call):
    with pytest.raises(ComityError) as refusal:
        call()
    return refusal.value.code


def test_a_dataset_is_counted_when_it_is_added(catalogue):
    wanted = {
        "name": "patients",
        "classification": "pseudonymous",
        "records": 10,
        "columns": ["age", "name", "outcome"],
    }
    assert catalogue.describe(["patients", "unknown"]) == [wanted]


def test_a_copy_holds_the_granted_columns_only(catalogue, tmp_path):
    copy = catalogue.materialise("patients", ["outcome", "age"], tmp_path / "run")
    lines = copy.path.read_text().splitlines()
    assert (lines[0], lines[1], copy.cohort) == ("age,outcome", "30,0", 10)
    assert "name-1" not in copy.path.read_text()
    assert copy.path.stat().st_mode & 0o777 == 0o400


def test_a_run_keeps_its_snapshot(catalogue, tmp_path):
    catalogue.materialise("patients", ["age"], tmp_path / "run")
    (tmp_path / "patients.csv").write_text("age,name,outcome\n1,x,0\n")
    assert catalogue.materialise("patients", ["age"], tmp_path / "run").cohort == 10
    assert catalogue.materialise("patients", ["age"], tmp_path / "next").cohort == 1


def test_what_is_wrong_is_named(catalogue, tmp_path):
    folder = tmp_path / "run"
    assert code_of(lambda: catalogue.materialise("other", [], folder)) is ErrorCode.DATASET_MISSING
    assert code_of(lambda: catalogue.materialise("patients", ["size"], folder)) is ErrorCode.DATASET_COLUMNS
    (tmp_path / "patients.csv").write_text("name,outcome\nx,0\n")
    assert code_of(lambda: catalogue.materialise("patients", ["age"], folder)) is ErrorCode.DATASET_COLUMNS
    (tmp_path / "patients.csv").write_text("age,name,outcome\n1,x\n")
    assert code_of(lambda: catalogue.materialise("patients", ["age"], folder)) is ErrorCode.DATASET_COLUMNS
    (tmp_path / "patients.csv").unlink()
    assert code_of(lambda: catalogue.materialise("patients", ["age"], folder)) is ErrorCode.DATASET_MISSING
    assert not list(folder.glob("*")), "a half-written copy was left"


def test_odd_sources_are_refused(catalogue, tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"a,a\n1,2\n")
    assert code_of(lambda: catalogue.add("x", path, classification="c")) is ErrorCode.MALFORMED
    path.write_bytes(b"\xff\xfe\x00\n")
    assert code_of(lambda: catalogue.add("x", path, classification="c")) is ErrorCode.MALFORMED
    assert code_of(lambda: catalogue.add("x", tmp_path / "x.xls", classification="c")) is ErrorCode.UNSUPPORTED
    assert code_of(lambda: catalogue.add("../x", path, classification="c")) is ErrorCode.MALFORMED
    again = lambda: catalogue.add("patients", tmp_path / "patients.csv", classification="c")  # noqa: E731
    assert code_of(again) is ErrorCode.CONFLICT


def test_arrays_are_copied_by_name_and_never_unpickled(catalogue, tmp_path):
    np.savez(tmp_path / "scan.npz", pixels=np.arange(12.0).reshape(4, 3), label=np.arange(4))
    catalogue.add("scan", tmp_path / "scan.npz", classification="c")
    copy = catalogue.materialise("scan", ["label"], tmp_path / "run")
    with np.load(copy.path) as arrays:
        assert arrays.files == ["label"]
    assert copy.cohort == 4
    np.savez(tmp_path / "evil.npz", thing=np.array([{"a": 1}], dtype=object))
    evil = lambda: catalogue.add("evil", tmp_path / "evil.npz", classification="c")  # noqa: E731
    assert code_of(evil) is ErrorCode.MALFORMED


def test_a_table_is_read_through_a_variable_and_its_url_is_never_shown(catalogue, tmp_path, monkeypatch):
    database = sqlite3.connect(tmp_path / "ward.db")
    database.execute("CREATE TABLE patients (age INTEGER, name TEXT)")
    database.executemany("INSERT INTO patients VALUES (?, ?)", [(n, f"n{n}") for n in range(7)])
    database.commit()
    database.close()
    monkeypatch.setenv("WARD_URL", f"sqlite:///{tmp_path}/ward.db")
    catalogue.add("ward", "WARD_URL", classification="c", format="sql", table="patients")
    copy = catalogue.materialise("ward", ["age"], tmp_path / "run")
    assert copy.cohort == 7
    assert copy.path.read_text().splitlines()[:2] == ["age", "0"]
    monkeypatch.setenv("WARD_URL", "mssql://nowhere.invalid/x")
    assert code_of(lambda: catalogue.materialise("ward", ["age"], tmp_path / "other")) is ErrorCode.UNSUPPORTED
    monkeypatch.setenv("WARD_URL", "postgresql+psycopg://user:hunter2@nowhere.invalid/x?connect_timeout=1")
    with pytest.raises(ComityError) as refusal:
        catalogue.materialise("ward", ["age"], tmp_path / "other")
    assert "hunter2" not in str(refusal.value)
    assert refusal.value.__cause__ is None
