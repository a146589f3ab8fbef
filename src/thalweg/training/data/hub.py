"""Data sets of the hub as local files, through huggingface_hub's cache. No code of a repository is fetched or run.

What is in the cache serves without a network (or with HF_HUB_OFFLINE set).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg.errors import CorpusError
from thalweg.inputs import formats
from thalweg.inputs.formats import TABLE_SUFFIXES
from thalweg.training.data.extras import require_datasets
from thalweg.training.data.files import is_data_file

CARD = "README.md"
_DEFAULT_SPLIT = "train"


@dataclass(frozen=True)
class Download:
    """Files of a repository at one commit, and the licence that its card states."""

    files: tuple[Path, ...]
    commit: str
    licence: str | None


class Repository:
    """A data set repository at a branch, tag or commit (None: its main branch)."""

    def __init__(self, name: str, revision: str | None = None) -> None:
        self.name, self.revision = name, revision
        folder = self._snapshot([CARD], revision)
        self.commit = folder.name  # of which all files are, also if the branch moves on meanwhile
        self.card = read_card(folder)

    @property
    def licence(self) -> str | None:
        stated = self.card.get("license")
        return ", ".join(map(str, stated)) if isinstance(stated, list) else stated

    def files(self, pattern: str) -> Download:
        """The data files whose paths match a pattern.

        Raises:
            CorpusError: there are none, or they cannot be had.
        """
        return self._download([pattern], f"files {pattern!r}")

    def split(self, config: str | None = None, split: str | None = None) -> Download:
        """The files of a split of a config, as the card has them; without a card as `datasets` infers them from names.

        Raises:
            CorpusError: there is no such config or split, or its files cannot be had.
        """
        configs = config_splits(self.card)
        if not configs:
            if config is not None:
                raise CorpusError(f"{self.name!r} has no configs, so no {config!r}; leave it out, or name a file")
            folder = self._snapshot(formats.patterns(TABLE_SUFFIXES), self.commit)
            paths = choose(self._inferred(folder), split, f"{self.name!r} has no split")
            return Download(tuple(map(Path, paths)), self.commit, self.licence)
        patterns = choose(self._of_config(configs, config), split, f"{self.name!r} has no split")
        return self._download(patterns, f"files {', '.join(patterns)}")

    def _of_config(self, configs: Mapping[str, dict[str, list[str]]], config: str | None) -> dict[str, list[str]]:
        if config is None:
            config = "default" if "default" in configs else next(iter(configs)) if len(configs) == 1 else None
        if config is None or config not in configs:
            known = ", ".join(configs)
            asked = "several configs" if config is None else f"no config {config!r}"
            raise CorpusError(f"{self.name!r} has {asked}; name one of: {known} (hub:{self.name}/CONFIG)")
        return configs[config]

    def _inferred(self, folder: Path) -> dict[str, list[str]]:
        datasets = require_datasets()
        try:
            found = datasets.load_dataset_builder(str(folder)).config.data_files
        except Exception as error:  # datasets has many, for a repository that it cannot make sense of
            raise CorpusError(
                f"{self.name!r} holds no files that can be read ({', '.join(TABLE_SUFFIXES)}): {type(error).__name__}"
            ) from error
        return {str(name): list(paths) for name, paths in (found or {}).items()}

    def _download(self, patterns: Sequence[str], what: str) -> Download:
        folder = self._snapshot(patterns, self.commit)
        found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
        files = tuple(sorted(path for path in found if is_data_file(path.name)))
        if not files:
            raise CorpusError(
                f"{self.name!r} has no {what} among its data ({', '.join(TABLE_SUFFIXES)}) at commit "
                f"{self.commit[:12]}, or they are not in the cache and the hub cannot be reached"
            )
        return Download(files, self.commit, self.licence)

    def _snapshot(self, patterns: Sequence[str], revision: str | None) -> Path:
        from huggingface_hub import snapshot_download

        try:
            folder = snapshot_download(self.name, repo_type="dataset", revision=revision, allow_patterns=list(patterns))
        except Exception as error:  # "no network" is an exception of another library in each release
            raise CorpusError(f"the data set {self.name!r} {self._reason(error)}") from error
        return Path(folder)

    def _reason(self, error: Exception) -> str:
        """What went wrong and what to do. The words of the error are left out: they hold addresses."""
        from huggingface_hub import errors

        at = f" at revision {self.revision!r}" if self.revision else ""
        if isinstance(error, errors.GatedRepoError):
            return "is gated: accept its terms on its page and log in with `hf auth login` (or set HF_TOKEN)"
        if isinstance(error, errors.RepositoryNotFoundError):
            return "is not on the hub, or is private: check the spelling, or log in with `hf auth login`"
        if isinstance(error, errors.RevisionNotFoundError):
            return f"has no branch, tag or commit {self.revision!r}"
        if isinstance(error, errors.HFValidationError):
            return "is no id of a repository, which looks like 'org/name'"
        return (
            f"is not in the hub's cache{at}, and the hub could not be used ({type(error).__name__}): download it where "
            "there is a network, or pass a local copy"
        )


class LocalCopy(Repository):
    """A local copy of a repository, card and all."""

    def __init__(self, name: str, folder: Path) -> None:
        self._copy = folder
        super().__init__(name)
        self.commit = ""

    def _snapshot(self, patterns: Sequence[str], revision: str | None) -> Path:
        return self._copy


def read_card(folder: Path) -> dict[str, Any]:
    """What the head of a folder's card states; {} where it has none.

    Raises:
        CorpusError: the head is not YAML.
    """
    from huggingface_hub import metadata_load

    if not (folder / CARD).is_file():
        return {}
    try:
        return dict(metadata_load(folder / CARD) or {})
    except Exception as error:  # YAML's own, and ValueError
        raise CorpusError(f"the head of {CARD} in {folder} cannot be read: {type(error).__name__}") from error


def config_splits(card: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Config → split → patterns of paths, of all configs that say where their files are."""
    found = {}
    for entry in card.get("configs") or []:
        files, folder = entry.get("data_files"), entry.get("data_dir")
        if isinstance(files, list) and files and isinstance(files[0], dict):
            splits = {item["split"]: _listed(item["path"]) for item in files}
        elif isinstance(files, dict):
            splits = {split: _listed(paths) for split, paths in files.items()}
        elif files:
            splits = {_DEFAULT_SPLIT: _listed(files)}
        elif folder:
            splits = {_DEFAULT_SPLIT: ["**/*"]}
        else:
            continue
        if folder:
            splits = {split: [f"{folder}/{path}" for path in paths] for split, paths in splits.items()}
        found[str(entry.get("config_name", "default"))] = splits
    return found


def choose(splits: Mapping[str, list[str]], split: str | None, problem: str) -> list[str]:
    """What belongs to a split: the one that is asked for, else "train", else the only one.

    Raises:
        CorpusError: there is no such split; `problem` begins the message.
    """
    wanted = split or (_DEFAULT_SPLIT if _DEFAULT_SPLIT in splits or len(splits) != 1 else next(iter(splits)))
    if wanted not in splits:
        raise CorpusError(f"{problem} {wanted!r}; name one of: {', '.join(splits) or 'none'}")
    return splits[wanted]


def _listed(paths: str | list[str]) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths)
