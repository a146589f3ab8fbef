"""Named sets and the hub: local copies, and a cache of huggingface_hub that was filled before, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from thalweg.errors import CorpusError
from thalweg.training.data import load_training_data
from thalweg.training.data.sets import E5_MISTRAL_PUBLIC

from .tables import Row, pairs, triples, write_rows

NAMES = [
    "allnli",
    "dureader",
    "eli5",
    "fever",
    "hotpotqa",
    "miracl",
    "mrtydi",
    "msmarco-passage",
    "msmarco-document",
    "nq",
    "quora",
    "squad",
    "t2ranking",
    "triviaqa",
]
SHARES = {"eli5": 0.1, "msmarco-passage": 0.5, "msmarco-document": 0.2, "quora": 0.1, "t2ranking": 0.5}
"""Of the paper; the others are taken whole."""

SYNTHETIC = ("bitext", "long_long", "long_short", "short_long", "short_short", "sts")


def echo_data(folder: Path, n: int = 4) -> Path:
    """The layout of the public mix: a file a data set, `{query, positive, negative}`."""
    for member in E5_MISTRAL_PUBLIC.members:
        rows = [{"query": f"q{i}", "positive": f"p{i}", "negative": f"n{i}"} for i in range(n)]
        write_rows(folder / member.file, rows)
    return folder


def synthetic_rows(kind: str) -> list[Row]:
    return [
        {"instruction": f"Do {kind} {i}", "query": f"q{i}", "positive": f"p{i}", "negative": "" if i == 2 else f"n{i}"}
        for i in range(3)
    ]


def synthetic_data(folder: Path) -> Path:
    """The layout of the synthetic data: a config for each generator and type of task, JSON lines behind each."""
    configs = []
    for generator in ("LLaMA-3.1-8B-Instruct", "LLaMA-3.1-70B-Instruct"):
        for kind in SYNTHETIC:
            write_rows(folder / f"synthetic_{generator}" / f"{kind}.jsonl", synthetic_rows(f"{kind} of {generator}"))
            configs += [
                f"- config_name: synthetic_{generator}_{kind}",
                "  data_files:",
                "  - split: train",
                f"    path: synthetic_{generator}/{kind}.jsonl",
            ]
    (folder / "README.md").write_text("\n".join(["---", "license: mit", "configs:", *configs, "---", "# Data", ""]))
    return folder


class HubCache:
    """A cache of huggingface_hub, as downloads leave it; the network is off."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, commit: str, branch: str = "main") -> Path:
        """The folder of a snapshot, to be filled with files."""
        repository = self.folder / f"datasets--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / branch).write_text(commit)
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        return snapshot


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return HubCache(tmp_path / "hub")


MAIN, OTHER = "a" * 40, "b" * 40


def test_the_public_mix_from_a_local_copy(tmp_path: Path) -> None:
    data = load_training_data([f"e5-mistral-public={echo_data(tmp_path / 'echo')}"], max_negatives=1)
    assert [*data.datasets] == NAMES
    assert all(dataset.column_names == ["anchor", "positive", "negative_1"] for dataset in data.datasets.values())
    assert {entry["weight"] for entry in data.manifest()} == {1.0}  # the shares of the paper are taken already
    assert {entry["name"]: entry["share"] for entry in data.manifest() if "share" in entry} == SHARES
    assert data.prompts["msmarco-passage"] == (
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "
    )
    assert data.datasets["msmarco-passage"]["anchor"][:] == ["q0", "q1", "q2", "q3"]
    several = {name for name, prompt in data.prompts.items() if not prompt}
    assert several == {"allnli", "quora"}  # two instructions each, row by row in turn
    assert [text.split("\n")[0] for text in data.datasets["allnli"]["anchor"][:]] == 2 * [
        "Instruct: Given a premise, retrieve a hypothesis that is entailed by the premise",
        "Instruct: Retrieve semantically similar text",
    ]


def test_without_instructions(tmp_path: Path) -> None:
    data = load_training_data([f"e5-mistral-public={echo_data(tmp_path / 'echo')}"], instructions=False)
    assert set(data.prompts.values()) == {""}
    assert data.datasets["allnli"]["anchor"][:] == ["q0", "q1", "q2", "q3"]


def test_members_weights_and_what_is_missing(tmp_path: Path) -> None:
    folder = echo_data(tmp_path / "echo")
    data = load_training_data([f"e5-mistral-public/nq={folder}", f"e5-mistral-public/squad={folder}@0.5"])
    assert {entry["name"]: (entry["rows"], entry["weight"]) for entry in data.manifest()} == {
        "nq": (4, 1),
        "squad": (2, 0.5),
    }
    with pytest.raises(CorpusError, match="'e5-mistral-public' has no data set 'bioasq'; it has: allnli, dureader"):
        load_training_data([f"e5-mistral-public/bioasq={folder}"])
    (folder / "fever.jsonl").unlink()
    with pytest.raises(CorpusError, match=r"has no 'fever.jsonl', which is data set 'fever'"):
        load_training_data([f"e5-mistral-public={folder}"])
    with pytest.raises(CorpusError, match="there is no folder"):
        load_training_data([f"e5-mistral-public={tmp_path / 'nothing'}"])


def test_the_public_mix_from_the_hub(hub: HubCache) -> None:
    echo_data(hub.add("liuqi6777/echo-data", MAIN))
    data = load_training_data(["e5-mistral-public"])
    assert [*data.datasets] == NAMES
    entry = data.manifest()[3]
    assert (entry["source"], entry["revision"]) == ("hub:liuqi6777/echo-data/fever.jsonl", MAIN)
    assert entry["licence"] == "CC-BY-SA-3.0"


def check_synthetic(data: Any, generator: str) -> None:
    assert [*data.datasets] == [f"synthetic_{generator}_{kind}" for kind in SYNTHETIC]
    name = f"synthetic_{generator}_sts"
    assert data.datasets[name][:] == {
        "anchor": [f"Instruct: Do sts of {generator} {i}\nQuery: q{i}" for i in range(2)],
        "positive": ["p0", "p1"],
        "negative_1": ["n0", "n1"],
    }
    assert data.counts[name] == {"read": 3, "kept": 2, "empty negative": 1}
    assert {entry["licence"] for entry in data.manifest()} == {"MIT"}


def test_the_synthetic_data(tmp_path: Path, hub: HubCache) -> None:
    copy = synthetic_data(tmp_path / "copy")
    check_synthetic(load_training_data([f"open-synthetic-embeddings={copy}"]), "LLaMA-3.1-70B-Instruct")
    synthetic_data(hub.add("jspringer/open-synthetic-embeddings", MAIN))
    check_synthetic(load_training_data(["open-synthetic-embeddings"]), "LLaMA-3.1-70B-Instruct")
    one = load_training_data(["open-synthetic-embeddings/synthetic_LLaMA-3.1-8B-Instruct_sts@0.5"])
    assert {name: len(dataset) for name, dataset in one.datasets.items()} == {"synthetic_LLaMA-3.1-8B-Instruct_sts": 1}
    one = load_training_data(["hub:jspringer/open-synthetic-embeddings/synthetic_LLaMA-3.1-8B-Instruct_sts:train"])
    assert [*one.datasets] == ["open-synthetic-embeddings-synthetic_LLaMA-3.1-8B-Instruct_sts"]
    assert one.manifest()[0]["licence"] == "mit"


def test_synthetic_data_as_its_generator_writes_it(tmp_path: Path) -> None:
    for kind in SYNTHETIC:
        write_rows(tmp_path / "final" / f"{kind}.jsonl", synthetic_rows(kind))
    data = load_training_data([f"open-synthetic-embeddings={tmp_path / 'final'}"])
    assert [*data.datasets] == [*SYNTHETIC]


def test_other_names_of_configs_are_told(tmp_path: Path) -> None:
    folder = synthetic_data(tmp_path / "copy")
    card = (folder / "README.md").read_text().replace("70B", "405B")
    (folder / "README.md").write_text(card)
    with pytest.raises(CorpusError, match=r"no config with '70b' in its name; it has: synthetic_LLaMA-3.1-8B.*CONFIG"):
        load_training_data([f"open-synthetic-embeddings={folder}"])


CARD = """---
license: apache-2.0
configs:
- config_name: triplet
  data_files:
  - split: train
    path: triplet/train-*
  - split: dev
    path: triplet/dev-*
- config_name: pair
  data_files:
  - split: train
    path: pair/train-*
---
"""


def with_card(snapshot: Path, n: int) -> None:
    """The layout that `push_to_hub` of datasets writes."""
    write_rows(snapshot / "triplet" / "train-00000-of-00002.parquet", triples(n))
    write_rows(snapshot / "triplet" / "train-00001-of-00002.parquet", triples(n, start=n))
    write_rows(snapshot / "triplet" / "dev-00000-of-00001.parquet", triples(1, start=900))
    write_rows(snapshot / "pair" / "train-00000-of-00001.parquet", pairs(n))
    (snapshot / "README.md").write_text(CARD)


def test_configs_splits_and_revisions_of_the_hub(hub: HubCache) -> None:
    with_card(hub.add("org/set", MAIN), 5)
    with_card(hub.add("org/set", OTHER, branch="v2"), 7)

    def load(spec: str) -> tuple[str, int, str]:
        data = load_training_data([spec])
        (entry,) = data.manifest()
        assert entry["licence"] == "apache-2.0"
        return entry["name"], entry["rows"], entry["revision"]

    assert load("hub:org/set/triplet") == ("set-triplet", 10, MAIN)
    assert load("hub:org/set/triplet:dev") == ("set-triplet", 1, MAIN)
    assert load("hub:org/set/pair#v2") == ("set-pair", 7, OTHER)
    assert load(f"hub:org/set/triplet:train#{OTHER}@0.5") == ("set-triplet", 7, OTHER)
    assert load("hub:org/set/pair/train-00000-of-00001.parquet") == ("train", 5, MAIN)


def test_a_repository_without_a_card(hub: HubCache) -> None:
    snapshot = hub.add("org/plain", MAIN)
    write_rows(snapshot / "train.jsonl", pairs(3))
    write_rows(snapshot / "test.jsonl", pairs(2))
    assert len(load_training_data(["hub:org/plain"]).datasets["plain"]) == 3
    assert len(load_training_data(["hub:org/plain:test"]).datasets["plain"]) == 2
    with pytest.raises(CorpusError, match="'org/plain' has no split 'dev'; name one of: train, test"):
        load_training_data(["hub:org/plain:dev"])
    with pytest.raises(CorpusError, match="'org/plain' has no configs, so no 'x'"):
        load_training_data(["hub:org/plain/x"])


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("hub:org/set", "'org/set' has several configs; name one of: triplet, pair"),
        ("hub:org/set/pairs", "'org/set' has no config 'pairs'; name one of: triplet, pair"),
        ("hub:org/set/pair:dev", "'org/set' has no split 'dev'; name one of: train"),
        ("hub:org/set/nothing.jsonl", "'org/set' has no files 'nothing.jsonl' among its data"),
        ("hub:org/set/pair/train-00000-of-00001.parquet:dev", "names files and a split"),
        ("hub:org", "is no data set of the hub; write hub:org/name"),
        ("hub:org/none", "the data set 'org/none' is not in the hub's cache, and the hub could not be used"),
        ("hub:org/set/pair#v9", "the data set 'org/set' is not in the hub's cache at revision 'v9'"),
        ("hub:org--x/-set/pair", "is no id of a repository"),
    ],
)
def test_what_the_hub_does_not_have(hub: HubCache, spec: str, told: str) -> None:
    with_card(hub.add("org/set", MAIN), 2)
    with pytest.raises(CorpusError) as caught:
        load_training_data([spec])
    assert told in str(caught.value)
    assert "://" not in str(caught.value)


def test_no_network_is_told_without_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the network on, and nobody there: what a request raises is not passed on."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        CorpusError, match="'org/none' is not in the hub's cache, and the hub could not be used"
    ) as error:
        load_training_data(["hub:org/none"])
    assert "127.0.0.1" not in str(error.value)


def test_code_of_a_repository_is_not_run(hub: HubCache, tmp_path: Path) -> None:
    snapshot = hub.add("org/evil", MAIN)
    write_rows(snapshot / "train.jsonl", pairs(3))
    (snapshot / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    assert len(load_training_data(["hub:org/evil"]).datasets["evil"]) == 3
    assert not (tmp_path / "run").exists()
