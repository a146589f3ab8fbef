"""Counts, duplicates, weights, numbers of negatives, the cache and the manifest."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from thalweg.errors import CorpusError, InvalidInputError
from thalweg.inputs.formats import TABLE_SUFFIXES
from thalweg.training.data import TrainingData, load_training_data

from .tables import pairs, triples, write_rows


def check_counts(data: TrainingData) -> None:
    """Every row that was read is in a data set or counted by reason, and no text is empty."""
    for name, dataset in data.datasets.items():
        counts = dict(data.counts[name])
        assert counts.pop("read") == sum(counts.values())
        assert counts["kept"] == len(dataset)
        names = ["anchor", "positive", *(f"negative_{i + 1}" for i in range(len(dataset.column_names) - 2))]
        assert dataset.column_names == names
        assert all(isinstance(text, str) and text.strip() for row in dataset for text in row.values())


def test_empty_triples_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [
        *triples(3),
        {"query": " ", "positive": "p", "negative": "n"},
        {"query": None, "positive": "p", "negative": "n"},
        {"query": "q", "positive": "", "negative": "n"},
        {"query": "q", "positive": [], "negative": "n"},
        {"query": "q", "positive": "p", "negative": "\n"},
    ]
    data = load_training_data([str(write_rows(tmp_path / "a.jsonl", rows))])
    assert data.counts == {
        "a": {"read": 8, "kept": 3, "empty query": 2, "empty positive": 2, "empty negative": 1},
    }
    check_counts(data)


def test_a_source_of_dropped_rows_only_is_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"query": "", "positive": "p"}])
    with pytest.raises(CorpusError, match="'a' has no row that can be used: 1 empty query"):
        load_training_data([str(path)])
    path = write_rows(tmp_path / "b.jsonl", [])
    with pytest.raises(CorpusError, match="'b' has no row that can be used: it has no rows"):
        load_training_data([str(path)])


def test_rows_with_fewer_negatives_are_a_data_set_of_their_own(tmp_path: Path) -> None:
    rows = [*triples(5, 2), *triples(3, 0, start=5), *triples(2, 7, start=8), {"query": "", "positive": "p"}]
    path = str(write_rows(tmp_path / "a.jsonl", rows))
    data = load_training_data([path])
    assert {name: len(dataset) for name, dataset in data.datasets.items()} == {
        "a": 5,
        "a (0 negatives)": 3,
        "a (7 negatives)": 2,
    }
    assert data.counts["a"]["read"] == 6  # with the row that was dropped
    check_counts(data)
    data = load_training_data([path], max_negatives=1)
    assert {name: (len(d), d.column_names[2:]) for name, d in data.datasets.items()} == {
        "a": (7, ["negative_1"]),
        "a (0 negatives)": (3, []),
    }
    assert data.notes["a"] == {"negatives beyond the maximum": 5 * 1 + 2 * 6}
    check_counts(data)
    drawn = {row["anchor"].split()[1]: row["negative_1"] for row in data.datasets["a"]}
    assert all(text.startswith(f"wrong {number}.") for number, text in drawn.items())
    assert len({text.split(".")[1] for text in drawn.values()}) > 1  # at random, not always the first
    assert [*load_training_data([path], max_negatives=0).datasets] == ["a"]
    with pytest.raises(InvalidInputError, match="max_negatives must be at least 0, or None for all, got -1"):
        load_training_data([path], max_negatives=-1)


def test_negatives_that_are_empty_or_positive_are_left_out(tmp_path: Path) -> None:
    row = {"query": "q", "positive": ["The bridge", "A bridge"], "negatives": ["", "the  BRIDGE", "n", "a bridge"]}
    data = load_training_data([str(write_rows(tmp_path / "a.jsonl", [row]))])
    assert data.datasets["a"]["negative_1"][:] == ["n"]
    notes = {"further positives": 1, "empty negatives of rows with others": 1, "negatives that are positives": 2}
    assert data.notes == {"a": notes}


def test_duplicates(tmp_path: Path) -> None:
    rows = [
        {"query": "Which bridge?", "positive": "The old one", "negative": "The new one"},
        {"query": "which  bridge? ", "positive": "THE OLD ONE", "negative": "the new one\n"},
        {"query": "Which bridge?", "positive": "The \uff4fld one", "negative": "The new one"},
        {"query": "Which bridge?", "positive": "The old one", "negative": "A ferry"},
    ]
    path = str(write_rows(tmp_path / "a.parquet", rows))
    data = load_training_data([path])
    assert [row["negative_1"] for row in data.datasets["a"]] == ["The new one", "A ferry"]
    assert data.datasets["a"][0]["anchor"] == "Which bridge?"  # the first, as it stands
    assert data.counts == {"a": {"read": 4, "kept": 2, "duplicate": 2}}
    data = load_training_data([path], deduplicate=False)
    assert data.counts == {"a": {"read": 4, "kept": 4}}


def test_weights_draw_a_share_of_the_rows(tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "a.jsonl", [*triples(180, 1), *triples(20, 0, start=180)]))
    data = load_training_data([f"{path}@0.25"])
    assert [len(dataset) for dataset in data.datasets.values()] == [45, 5]
    assert {entry["weight"] for entry in data.manifest()} == {0.25}
    assert set(data.weights.values()) == {1.0}  # nothing is left to weigh
    assert data.counts["a"] == {"read": 180, "left out by weight": 135, "kept": 45}
    check_counts(data)
    anchors = data.datasets["a"]["anchor"][:]
    assert len(set(anchors)) == 45
    assert anchors == load_training_data([f"{path}@0.25"]).datasets["a"]["anchor"][:]
    assert anchors != load_training_data([f"{path}@0.25"], seed=1).datasets["a"]["anchor"][:]
    assert len(load_training_data([f"{path}@1e-9"]).datasets["a"]) == 1
    assert load_training_data([f"{path}@1.0"]).counts["a"] == {"read": 180, "kept": 180}


def test_the_proportional_sampler_gives_the_weighted_mix(tmp_path: Path) -> None:
    """The weights are in the sizes, and sentence-transformers draws batches in proportion to those."""
    import torch
    from sentence_transformers.base.sampler import ProportionalBatchSampler
    from torch.utils.data import BatchSampler, ConcatDataset, SequentialSampler

    a, b = (str(write_rows(tmp_path / f"{name}.jsonl", pairs(400))) for name in "ab")
    data = load_training_data([f"{a}@0.25", b])
    parts = list(data.datasets.values())
    samplers = [BatchSampler(SequentialSampler(part), 10, drop_last=True) for part in parts]
    joined = ConcatDataset(parts)
    batches = list(ProportionalBatchSampler(joined, samplers, generator=torch.Generator(), seed=0))
    of = Counter(["a" if max(batch) < 100 else "b" if min(batch) >= 100 else "mixed" for batch in batches])
    assert of == {"a": 10, "b": 40}


@pytest.mark.parametrize("weight", ["0", "-1", "1.5", "2", "nan", "inf"])
def test_weights_out_of_range(tmp_path: Path, weight: str) -> None:
    path = write_rows(tmp_path / "a.jsonl", pairs(3))
    with pytest.raises(InvalidInputError, match=f"@{weight}.*above 0 and at most 1.*train more epochs"):
        load_training_data([f"{path}@{weight}"])


def test_a_file_whose_name_looks_weighted(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a@0.5", pairs(4)).rename(tmp_path / "a@0.5.jsonl")
    assert len(load_training_data([str(path)]).datasets["a@0.5"]) == 4


def test_folders_globs_and_shards(tmp_path: Path) -> None:
    write_rows(tmp_path / "d" / "one.jsonl.gz", pairs(2))
    write_rows(tmp_path / "d" / "train-00000-of-00002.parquet", pairs(3))
    write_rows(tmp_path / "d" / "train-00001-of-00002.parquet", pairs(4, start=3))
    write_rows(tmp_path / "d" / "deep" / "one.json", pairs(5))
    write_rows(tmp_path / "d" / ".hidden.jsonl", pairs(6))
    (tmp_path / "d" / "README.md").write_text("not data")
    sizes = {name: len(d) for name, d in load_training_data([str(tmp_path / "d")]).datasets.items()}
    assert sizes == {"one": 2, "train": 7, "deep/one": 5}
    assert [*load_training_data([str(tmp_path / "d" / "*.parquet")]).datasets] == ["train"]
    twice = load_training_data([str(tmp_path / "d" / "one.jsonl.gz"), str(tmp_path / "d" / "deep" / "one.json")])
    assert [*twice.datasets] == ["one", "one-2"]


@pytest.mark.parametrize("spec", ["nothing.jsonl", "nothing/*.parquet", "e5-mistral-pubic", "folder"])
def test_specs_that_stand_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(CorpusError, match=r"data set '.*' (matches|does)|data set 'folder': no files") as caught:
        load_training_data([spec])
    assert repr(spec) in str(caught.value)
    assert "hub:org/name" in str(caught.value)
    assert "e5-mistral-public" in str(caught.value)


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="at least one data set"):
        load_training_data([])
    with pytest.raises(InvalidInputError, match="must be a list"):
        load_training_data("a.jsonl")
    (tmp_path / "a.txt").write_text("query,positive\n")
    with pytest.raises(CorpusError, match=r"a.txt' is not among the formats that are read \(.jsonl"):
        load_training_data([str(tmp_path / "a.txt")])


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_every_format_of_rows_is_read(tmp_path: Path, suffix: str, packed: str) -> None:
    """By the one table of formats that `thalweg embed` has."""
    content: dict[str, bytes] = {
        ".json": json.dumps(pairs(3), indent=1).encode(),
        ".csv": b'query;positive;note\n"question 0";answer 0;x\nquestion 1;answer 1;\nquestion 2;answer 2;\n',
        ".tsv": b"query\tpositive\nquestion 0\tanswer 0\nquestion 1\tanswer 1\nquestion 2\tanswer 2\n",
    }
    content[".tab"] = content[".tsv"]
    content[".parquet"] = write_rows(tmp_path / "x" / "a.parquet", pairs(3)).read_bytes()
    data = content.get(suffix) or write_rows(tmp_path / "x" / "a.jsonl", pairs(3)).read_bytes()
    path = tmp_path / f"A{suffix.upper()}{packed}"
    path.write_bytes(gzip.compress(data) if packed else data)
    (dataset,) = load_training_data([str(path)]).datasets.values()
    assert dataset[:] == {
        "anchor": [f"question {i}" for i in range(3)],
        "positive": [f"answer {i}" for i in range(3)],
    }


def test_rows_are_memory_mapped_and_read_once(tmp_path: Path, cache: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", triples(2500, 2))
    first = load_training_data([str(path)], seed=3)
    (folder,) = (entry for entry in (cache / "thalweg").iterdir() if entry.is_dir())
    (file,) = (Path(entry["filename"]) for entry in first.datasets["a"].cache_files)
    assert file == folder / "part-2.arrow"
    written = file.stat().st_mtime_ns
    again = load_training_data([str(path)], seed=3)
    assert file.stat().st_mtime_ns == written
    assert again.datasets["a"][:] == first.datasets["a"][:]
    assert (again.counts, again.manifest()) == (first.counts, first.manifest())
    write_rows(path, triples(7))
    os.utime(path, ns=(1, 1))
    assert len(load_training_data([str(path)], seed=3).datasets["a"]) == 7


def test_a_broken_off_reading_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [*pairs(10), {"query": 1, "positive": "p"}])
    with pytest.raises(CorpusError, match="line 11"):
        load_training_data([str(path)])
    with pytest.raises(CorpusError, match="line 11"):
        load_training_data([str(path)])
    assert not [entry for entry in (cache / "thalweg").iterdir() if entry.is_dir() and entry.suffix != ".tmp"]
    write_rows(path, pairs(10))
    assert len(load_training_data([str(path)]).datasets["a"]) == 10
    assert not list((cache / "thalweg").glob("*.tmp"))


def test_what_a_killed_reading_left_does_not_count(tmp_path: Path, cache: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", pairs(10))
    load_training_data([str(path)])
    (folder,) = (entry for entry in (cache / "thalweg").iterdir() if entry.is_dir())
    folder.rename(folder.with_name(f"{folder.name}.tmp"))
    (folder.with_name(f"{folder.name}.tmp") / "part-7.arrow").write_bytes(b"half")
    assert load_training_data([str(path)]).counts == {"a": {"read": 10, "kept": 10}}
    assert sorted(entry.name for entry in folder.iterdir()) == ["part-0.arrow", "part-0.hashes", "summary.json"]


@pytest.mark.memory
def test_large_files_do_not_go_through_memory(tmp_path: Path) -> None:
    """No more of a file is held than a batch of rows."""
    rows = [{"query": f"question {i}", "positive": f"{i} " * 500} for i in range(600)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    line = path.read_bytes()
    with path.open("wb") as file:
        for _ in range(10):
            file.write(line)
    n_bytes = path.stat().st_size
    assert n_bytes > 10 << 20
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    tracemalloc.start()
    data = load_training_data([str(path)], deduplicate=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n_bytes // 3
    assert pool.bytes_allocated() - before < n_bytes // 10
    assert len(data.datasets["a"]) == 6_000


def test_the_manifest_says_what_a_model_card_needs(tmp_path: Path) -> None:
    rows = [
        {**row, "source": f"arxiv/{i % 2}", "licence": "CC0-1.0" if i else "CC-BY-4.0", "kind": "title"}
        for i, row in enumerate(pairs(10))
    ]
    path = write_rows(tmp_path / "pairs-arxiv.parquet", rows)
    data = load_training_data([f"{path}@0.5", str(write_rows(tmp_path / "other.jsonl", pairs(1)))])
    assert data.manifest() == [
        {
            "name": "pairs-arxiv",
            "source": "pairs-arxiv.parquet (arxiv/0, arxiv/1)",
            "revision": None,
            "licence": "CC0-1.0, CC-BY-4.0",
            "rows": 5,
            "weight": 0.5,
            "prompt": "",
            "counts": {"read": 10, "left out by weight": 5, "kept": 5},
        },
        {
            "name": "other",
            "source": "other.jsonl",
            "revision": None,
            "licence": None,
            "rows": 1,
            "weight": 1.0,
            "prompt": "",
            "counts": {"read": 1, "kept": 1},
        },
    ]
    assert str(tmp_path) not in str(data.manifest())
