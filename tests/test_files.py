"""Lines of records, of which a crash or a hand may have spoilt some."""

import pytest

from datgan_fast import files


def test_lines_that_are_no_records_are_left_out(tmp_path):
    path = tmp_path / "stats.jsonl"
    lines = ['{"step": 1}', "", '{"st', '{"step": 2, "loss": null}', "7", '{"step": "3"}', '{"step": true}', "[" * 9999]
    path.write_bytes(
        "\n".join([*lines, '{"step": 4, "why": [1]}', '{"step": 5}', "\x00"]).encode() + b'\xff\n{"step": 6'
    )
    with pytest.warns(UserWarning, match=r"stats\.jsonl: left out what is no record in line 2, 3, 5 and 5 more\.$"):
        assert files.read_json_lines(path) == [{"step": 1}, {"step": 2, "loss": None}, {"step": 5}]


def test_a_line_cut_off_by_a_crash_is_nothing_to_say(tmp_path, recwarn):
    (tmp_path / "a.jsonl").write_text('{"step": 1}\n{"step": 2')
    assert files.read_json_lines(tmp_path / "a.jsonl") == [{"step": 1}]
    assert not recwarn.list
