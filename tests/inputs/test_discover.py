"""Arguments to files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from thalweg.errors import CorpusError
from thalweg.inputs.discover import Reading, discover
from thalweg.inputs.globs import expand


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.md", "sub/c.txt.gz", "sub/t.jsonl", "t.csv", "x.py", ".hidden.txt", ".git/d.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    return tmp_path


def ids(*inputs: object, **options: object) -> list[str]:
    files, unreadable, _ = discover([str(path) for path in inputs], **options)  # type: ignore[arg-type]
    assert not unreadable
    return [file.id for file in files]


def test_a_folder_gives_text_and_tables_sorted_with_paths_below_it(root: Path) -> None:
    assert ids(root) == ["a.md", "b.txt", "sub/c.txt.gz", "sub/t.jsonl", "t.csv"]


def test_kinds_sizes_and_times_are_noted(root: Path) -> None:
    files, *_ = discover([str(root)])
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
    files, *_ = discover([str(root), "-"], lines=True)
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
    files, unreadable, _ = discover([str(root)])
    assert len(files) == 5
    assert [folder.path for folder in unreadable] == [str(closed)]


def test_suffixes_in_capitals_are_found(tmp_path: Path) -> None:
    for name in ("NOTES.TXT", "D.CSV", "t.Jsonl.GZ", "a.Md", "x.PY"):
        (tmp_path / name).write_text("x")
    files, _, left_out = discover([str(tmp_path)])
    kinds = {file.id: (file.kind, file.gz) for file in files}
    assert kinds == {
        "D.CSV": ("csv", False),
        "NOTES.TXT": ("text", False),
        "a.Md": ("text", False),
        "t.Jsonl.GZ": ("jsonl", True),
    }
    assert left_out == {".py": 1}


def test_what_is_left_out_is_counted_by_kind(root: Path) -> None:
    for name in ("y.py", "a.PDF", "Makefile", "z.tar.gz"):
        (root / name).write_text("x")
    (root / "again.txt").symlink_to(root / "b.txt")
    (root / "folder").symlink_to(root / "sub")
    os.mkfifo(root / "pipe.txt")
    files, _, left_out = discover([str(root)], exclude=[root / "t.csv"])
    assert [file.id for file in files] == ["a.md", "again.txt", "sub/c.txt.gz", "sub/t.jsonl"]
    assert left_out == {
        ".py": 2,
        ".pdf": 1,
        ".tar": 1,
        "without suffix": 1,
        "hidden": 2,
        "links to folders": 1,
        "pipes, sockets or devices": 1,
        "the same file again": 1,
        "outputs of thalweg": 1,
    }
    _, _, left_out = discover([str(root)], globs=["*.py", "sub/*"])
    assert left_out[".md"] == left_out[".csv"] == 1
    assert (left_out[".py"], left_out[".gz"]) == (0, 0)


def test_links_that_lead_to_themselves(root: Path) -> None:
    """Named, in a folder, or met by a pattern: each is a file that cannot be opened."""
    loop, a, b = root / "loop.txt", root / "a-loop.txt", root / "b-loop.txt"
    loop.symlink_to(loop)
    a.symlink_to(b)
    b.symlink_to(a)
    assert ids(loop, a) == [loop.as_posix(), a.as_posix()]
    assert {"loop.txt", "a-loop.txt", "b-loop.txt"} <= set(ids(root))
    assert loop.as_posix() in ids(root / "*.txt")
    assert ids(root / "a.md", exclude=[loop]) == [(root / "a.md").as_posix()]


@pytest.mark.timeout(60)
def test_a_pattern_over_links_to_its_own_folder_ends(root: Path) -> None:
    """Two of them: a search that follows links doubles with every level."""
    for name in ("x", "y"):
        (root / name).symlink_to(".")
    (root / "sub" / "up").symlink_to("..")
    expected = [(root / name).as_posix() for name in ("sub/t.jsonl",)]
    assert ids(root / "**" / "*.jsonl") == expected
    assert ids(str(root) + "/**/t.*") == [(root / name).as_posix() for name in ("sub/t.jsonl", "t.csv")]


def test_patterns_match_as_in_glob(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no links."""
    import glob

    monkeypatch.chdir(root)
    (root / "sub" / "deep").mkdir()
    (root / "sub" / "deep" / "e.txt").write_text("x")
    for pattern in (
        *("*", "*.txt", "s*/*", "**", "**/", "**/*", "**/*.txt", "sub/**", "s*/**/*.txt", "**/deep", "**/deep/*"),
        *(".*", "**/.*", "[ab].*", "no*", "sub/**/**/*.txt", "*/", "**/s*/", f"{root}/**/*.txt", "./**/*.md"),
    ):
        expected = {os.path.normpath(path) for path in glob.glob(pattern, recursive=True)}
        assert {os.path.normpath(path) for path in expand(pattern)} == expected, pattern


def test_what_is_said_of_all_files_is_with_each(root: Path) -> None:
    files, *_ = discover([str(root), "-"], reading=Reading("csv", "latin-1", ";"))
    assert {(file.kind, file.encoding, file.delimiter) for file in files} == {("csv", "latin-1", ";")}
    assert [file.gz for file in files] == [False, False, True, False, False, False]


def test_only_files_that_are_named_or_asked_for_are_meant(root: Path) -> None:
    assert [file.asked for file in discover([str(root / "b.txt"), str(root / "a*"), "-"]).files] == [True] * 3
    assert not any(file.asked for file in discover([str(root)]).files)
    assert all(file.asked for file in discover([str(root)], globs=["*.txt"]).files)


def test_the_error_says_what_there_is_instead(tmp_path: Path) -> None:
    for name in ("a.py", "b.py", ".x"):
        (tmp_path / name).write_text("x")
    with pytest.raises(CorpusError, match=r"no files in .*, which has 2 \.py, 1 hidden; folders give \*\.txt"):
        discover([str(tmp_path)])


def test_what_one_argument_leaves_out_another_may_name(root: Path) -> None:
    files, _, left_out = discover([str(root), str(root / "x.py"), str(root), str(root / ".hidden.txt")])
    assert {os.path.basename(file.path) for file in files} >= {"x.py", ".hidden.txt"}
    assert left_out == {"hidden": 1, "the same file again": 5}
