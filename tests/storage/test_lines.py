"""Lines that were appended are there after any crash; a line that is not whole is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from thalweg.errors import CorpusError
from thalweg.storage.lines import Lines, read_lines

RECORDS = [{"n": i, "text": 'é\n"' * i, "odd": "\ud800"} for i in range(6)]


@examples(60)
@given(kept=st.integers(1, 10**6), long=st.integers(0, 200_000))
def test_a_torn_line_is_skipped_and_cut_off(tmp_path_factory: pytest.TempPathFactory, kept: int, long: int) -> None:
    path = tmp_path_factory.mktemp("lines") / "log.jsonl"
    records = [*RECORDS, {"long": "x" * long}]
    with Lines(path) as lines:
        places = [lines.append(record) for record in records]
        assert [lines.read(place) for place in places] == records
    whole = path.read_bytes()
    path.write_bytes(whole[: kept % len(whole)])
    left = [
        record for place, record in zip([*places[1:], len(whole)], records, strict=True) if place <= kept % len(whole)
    ]
    assert [record for _, record in read_lines(path)] == left
    with Lines(path) as lines:
        lines.append({"more": 1})
        assert [record for _, record in lines] == [*left, {"more": 1}]


def test_several_records_are_one_write(tmp_path: Path) -> None:
    with Lines(tmp_path / "log.jsonl") as lines:
        assert [lines.append(*RECORDS), lines.append()] == [0, (tmp_path / "log.jsonl").stat().st_size]
        assert dict(lines) == {place: lines.read(place) for place, _ in lines}


@pytest.mark.parametrize("line", [b"[1]", b"nonsense", b"\xff", b"{" * 100_000])
def test_a_line_that_was_changed_is_an_error(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(CorpusError, match=r"log\.jsonl holds something else than a record at byte 9"):
        list(read_lines(path))


def test_no_file_has_no_lines(tmp_path: Path) -> None:
    assert not list(read_lines(tmp_path / "none.jsonl"))


FULL = """
import json, resource, sys
from pathlib import Path
from thalweg.storage.durable import write_durably
from thalweg.storage.lines import Lines

folder = Path(sys.argv[1])
lines = Lines(folder / "log.jsonl")
lines.append({"n": 1})
write_durably(folder / "whole", lambda stream: stream.write(b"old"))
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # as on a full disk: half of it is written
told = []
for write in (
    lambda: lines.append({"n": "x" * 9000}),
    lambda: write_durably(folder / "whole", lambda stream: stream.write(b"x" * 9000)),
):
    try:
        write()
    except OSError as error:
        told.append(error.filename)
lines.append({"n": 2})
lines.close()
print(json.dumps(told))
"""


@pytest.mark.subprocess
@pytest.mark.skipif(os.name == "nt", reason="limits")
def test_what_does_not_fit_on_the_disk_is_not_there_by_half(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [str(tmp_path / "log.jsonl"), str(tmp_path / "whole")]
    assert [record for _, record in read_lines(tmp_path / "log.jsonl")] == [{"n": 1}, {"n": 2}]
    assert (tmp_path / "whole").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "whole"]
