import json

import pytest

from fullspectrum_ext.experiments.records import (
    append_record,
    read_json,
    read_records,
    rewind_records,
    write_json,
)


def _record(method, seed, epoch, **more):
    return {"method": method, "seed": seed, "epoch": epoch, **more}


def test_records_come_back_in_order(tmp_path):
    path = tmp_path / "r.jsonl"
    records = [_record("ü", 0, 1, loss=0.1), _record("ü", 0, 2, loss=1e-17)]

    for record in records:
        append_record(path, record)

    assert read_records(path) == records
    assert read_records(tmp_path / "none.jsonl") == []


def test_rewinding_drops_what_is_not_checkpointed_and_what_is_torn(tmp_path):
    path = tmp_path / "r.jsonl"
    for record in (_record("a", 0, 1), _record("a", 0, 2), _record("b", 0, 1), _record("b", 0, 2)):
        append_record(path, record)
    with path.open("ab") as file:
        file.write(b'{"method": "b", "se')

    rewind_records(path, {("a", 0): 2, ("b", 0): 1, ("a", 1): 0})

    assert read_records(path) == [_record("a", 0, 1), _record("a", 0, 2), _record("b", 0, 1)]


def test_rewinding_orders_and_undoubles(tmp_path):
    path = tmp_path / "r.jsonl"
    for record in (_record("b", 0, 1), _record("a", 0, 1), _record("a", 0, 1)):
        append_record(path, record)

    rewind_records(path, {("a", 0): 1, ("b", 0): 1})

    assert read_records(path) == [_record("a", 0, 1), _record("b", 0, 1)]


def test_a_lost_line_is_an_error(tmp_path):
    path = tmp_path / "r.jsonl"
    append_record(path, _record("a", 0, 2))

    with pytest.raises(ValueError, match=r"r\.jsonl: the line of method a, seed 0, epoch 1 is mis"):
        rewind_records(path, {("a", 0): 2})


def test_damaged_files_are_refused_by_name(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"epoch": 1}\nnonsense\n')
    with pytest.raises(ValueError, match=r"r\.jsonl: line 2: expected JSON"):
        read_records(path)
    path.write_bytes(b"[1]\n")
    with pytest.raises(ValueError, match=r"r\.jsonl: line 1: expected a JSON object"):
        read_records(path)
    with pytest.raises(ValueError, match=r"r\.jsonl: expected a JSON object"):
        read_json(path)
    path.write_bytes(b'{"a"')
    with pytest.raises(ValueError, match=r"r\.jsonl: expected JSON"):
        read_json(path)


def test_json_is_strict(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1, "ü"]})
    assert read_json(tmp_path / "x.json") == {"a": [1, "ü"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, "ü"]}
