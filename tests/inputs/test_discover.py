"""Arguments to files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from thalweg.errors import CorpusError
from thalweg.inputs.discover import discover


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.md", "sub/c.txt.gz", "sub/t.jsonl", "t.csv", "x.py", ".hidden.txt", ".git/d.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    return tmp_path


def ids(*inputs: object, **options: object) -> list[str]:
    files, unreadable = discover([str(path) for path in inputs], **options)  # type: ignore[arg-type]
    assert not unreadable
    return [file.id for file in files]


def test_a_folder_gives_text_and_tables_sorted_with_paths_below_it(root: Path) -> None:
    assert ids(root) == ["a.md", "b.txt", "sub/c.txt.gz", "sub/t.jsonl", "t.csv"]


def test_kinds_sizes_and_times_are_noted(root: Path) -> None:
    files, _ = discover([str(root)])
    assert [(file.kind, file.gz) for file in files] == [
        ("text", False),
        ("text", False),
        ("text", True),
        ("jsonl", False),
        ("csv", False),
    ]
    assert all(file.size == 1 and file.modified_ns == os.stat(file.path).st_mtime_ns for file in files)


def test_patterns_replace_what_folders_give(root: Path) -> None:
    assert ids(root, globs=["*.py"]) == ["x.py"]
    assert ids(root, globs=["sub/*", "x.*"]) == ["sub/c.txt.gz", "sub/t.jsonl", "x.py"]


def test_a_named_file_is_always_read_and_called_as_it_was_named(root: Path) -> None:
    assert ids(root / "x.py") == [(root / "x.py").as_posix()]
    assert ids(root / ".hidden.txt") == [(root / ".hidden.txt").as_posix()]


def test_several_inputs_keep_their_order_and_full_paths_and_come_once(root: Path) -> None:
    expected = [(root / name).as_posix() for name in ("t.csv", "sub/c.txt.gz", "sub/t.jsonl")]
    assert ids(root / "t.csv", root / "sub", root / "sub" / ".." / "t.csv") == expected


def test_globs_are_sorted_and_may_match_folders(root: Path) -> None:
    assert ids(root / "*.txt") == [(root / "b.txt").as_posix()]
    assert ids(root / "s*") == [(root / name).as_posix() for name in ("sub/c.txt.gz", "sub/t.jsonl")]
    assert ids(root / "**" / "*.jsonl") == [(root / "sub/t.jsonl").as_posix()]


def test_a_name_that_exists_is_no_pattern(root: Path) -> None:
    (root / "[a].txt").write_text("x")
    assert ids(root / "[a].txt") == [(root / "[a].txt").as_posix()]


def test_lines_concern_text_only(root: Path) -> None:
    files, _ = discover([str(root), "-"], lines=True)
    assert [file.kind for file in files] == ["lines", "lines", "lines", "jsonl", "csv", "lines"]


def test_excluded_files_are_never_input(root: Path) -> None:
    assert "t.csv" not in ids(root, exclude=[root / "sub" / ".." / "t.csv"])


def test_a_dangling_link_is_kept_to_be_reported_and_a_pipe_is_not(root: Path) -> None:
    (root / "link.txt").symlink_to(root / "nowhere.txt")
    os.mkfifo(root / "pipe.txt")
    assert "link.txt" in ids(root)
    assert "pipe.txt" not in ids(root)


def test_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no files in .*; folders give \*\.txt"):
        discover([str(tmp_path)])
    with pytest.raises(CorpusError, match="does not exist"):
        discover([str(tmp_path / "missing.txt")])
    with pytest.raises(CorpusError, match="matches nothing"):
        discover([str(tmp_path / "*.txt")])


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_closed_folder_is_reported_and_the_rest_found(root: Path) -> None:
    closed = root / "closed"
    closed.mkdir(mode=0)
    files, unreadable = discover([str(root)])
    assert len(files) == 5
    assert [folder.path for folder in unreadable] == [str(closed)]
