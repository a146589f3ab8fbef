"""A name → a local folder: a path as it is, a hub id through huggingface_hub's cache."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from thalweg.checkpoints.fields import listing
from thalweg.checkpoints.files import STANDALONE, WEIGHT_FILES, TensorInfo, choose_weights
from thalweg.checkpoints.tokens import TOKENIZER_FILES
from thalweg.errors import CheckpointError, InvalidInputError

SMALL_FILES = (
    "config.json",
    "params.json",
    "generation_config.json",
    *TOKENIZER_FILES,
    "modules.json",
    "*/config.json",
    "*_Lexicon/model.safetensors",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "thalweg.json",
)
"""What is fetched of a repository besides its weights, as patterns. Never its Python files."""

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+?)(?:/([\w./-]+\.pth))?", re.ASCII)


def resolve(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool | None = None,
) -> Path:
    """The local folder of a model, or the one weight file in it that was asked for.

    An existing folder or `.pth` file is used as it is. Anything else must be a hub id `org/name`, of which one weight
    format and the small files are fetched into huggingface_hub's cache, or one `.pth` of it (`org/name/model.pth`);
    where the hub cannot be reached (or HF_HUB_OFFLINE is set) the cached snapshot is used.

    Args:
        revision: branch, tag or commit of a hub id.
        token: for private and gated repositories; None takes the stored login or HF_TOKEN.
        cache_dir: instead of huggingface_hub's.
        local_files_only: True never touches the network.

    Raises:
        CheckpointError: neither a folder nor a model that can be had, saying why and what to do.
    """
    path, name = Path(name_or_path).expanduser(), str(name_or_path)
    if (name and path.is_dir()) or (path.is_file() and path.suffix == STANDALONE):  # "" would be the current folder
        if revision is not None:
            kind = "folder" if path.is_dir() else "file"
            raise InvalidInputError(f"revision={revision!r} has no meaning for the local {kind} {name!r}; leave it out")
        return path
    if path.is_file():
        raise CheckpointError(f"{name!r} is a file; give the folder that holds it and its config.json")
    hub_id = _HUB_ID.fullmatch(name)
    if isinstance(name_or_path, Path) or not hub_id:
        raise CheckpointError(f"there is no folder {name!r}, and it is not a hub id, which looks like 'org/name'")
    repository, file = hub_id.groups()
    folder = _Repository(repository, revision, token, cache_dir, file).fetch(local_files_only=bool(local_files_only))
    return folder / file if file else folder


def read_headers(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> tuple[Path, dict[str, TensorInfo] | None] | None:
    """The folder of a hub id's small files, and what its weight files hold, without downloading these.

    Of safetensors the headers are fetched; other weight files are not looked at (None). None for both where `resolve`
    has to be used: for a local folder, a `.pth`, which needs no config, and where the hub cannot be reached.

    Raises:
        CheckpointError: the repository cannot be had, or holds no weights.
    """
    hub_id = _HUB_ID.fullmatch(name)
    if Path(name).expanduser().exists() or hub_id is None or hub_id[2] is not None:
        return None
    return _Repository(hub_id[1], revision, token, cache_dir).read_headers()


class _Repository:
    """One hub repository at one revision. huggingface_hub is imported only when a hub id is resolved."""

    def __init__(
        self,
        name: str,
        revision: str | None,
        token: str | bool | None,
        cache_dir: str | Path | None,
        file: str | None = None,
    ) -> None:
        """`file`: the one weight file that is wanted; None lets `choose_weights` decide."""
        self.name, self.revision, self.token, self.cache_dir, self.file = name, revision, token, cache_dir, file

    def fetch(self, *, local_files_only: bool) -> Path:
        if local_files_only:
            return self._cached(None)
        names = self._list()
        if isinstance(names, Exception):  # a cached snapshot serves as well
            return self._cached(names)
        return self._download([*self._weights(names), *_matching(names, SMALL_FILES)])

    def read_headers(self) -> tuple[Path, dict[str, TensorInfo] | None] | None:
        """See `read_headers`."""
        names = self._list()
        if isinstance(names, Exception):
            return None
        weights = self._weights(names)
        if any(name.endswith(STANDALONE) for name in weights):
            return None
        folder = self._download(_matching(names, SMALL_FILES))
        files = [name for name in weights if name.endswith(".safetensors")]
        if not files:
            return folder, None
        return folder, {tensor: info for file in files for tensor, info in self._header(file, folder / file).items()}

    def _header(self, file: str, path: Path) -> dict[str, TensorInfo]:
        from huggingface_hub import HfApi

        try:
            found = HfApi(token=self.token).parse_safetensors_file_metadata(self.name, file, revision=self.revision)
            return {name: TensorInfo.stated(path, info.shape, info.dtype) for name, info in found.tensors.items()}
        except Exception as error:  # also what the library raises for a header that is none
            raise CheckpointError(f"could not read the header of {file} of {self.name!r}: {error!s:.300}") from error

    def _list(self) -> list[str] | Exception:
        """The names of all files, or whatever keeps the hub from answering: "no network" is an exception of requests,
        httpx or httpx2, depending on the release of huggingface_hub."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RevisionNotFoundError

        try:
            return list(HfApi(token=self.token).list_repo_files(self.name, revision=self.revision))
        except RevisionNotFoundError as error:
            raise CheckpointError(f"{self.name!r} has no branch, tag or commit {self.revision!r}") from error
        except Exception as error:
            return error

    def _weights(self, names: list[str]) -> tuple[str, ...]:
        weights = self._choose(names)
        if not weights:
            names_known = ", ".join(WEIGHT_FILES)
            files = [f"{self.name}/{name}" for name in names if name.endswith(STANDALONE)]
            raise CheckpointError(
                f"{self.name!r} holds no {self.file or f'weights in a known format ({names_known})'}"
                + (f"; name one of {listing(files)}" if files else "")
            )
        return weights

    def _choose(self, names: list[str]) -> tuple[str, ...]:
        if self.file is None:
            return choose_weights(names)
        return (self.file,) if self.file in names else ()

    def _download(self, files: list[str]) -> Path:
        try:
            return self._snapshot(files, local_files_only=False)
        except Exception as error:
            raise CheckpointError(f"could not download {self.name!r}: {self._advice(error)}") from error

    def _cached(self, reason: Exception | None) -> Path:
        """The snapshot of an earlier download; otherwise the error that tells why there is none and what to do."""
        try:
            folder = self._snapshot(list(SMALL_FILES), local_files_only=True)
        except Exception as error:
            raise CheckpointError(
                f"{self.name!r} is neither a local folder nor in the hub's cache"
                f"{f' at revision {self.revision!r}' if self.revision else ''}, and {self._advice(reason)}"
            ) from (reason or error)
        if not self._choose([path.relative_to(folder).as_posix() for path in folder.rglob("*")]):
            raise CheckpointError(
                f"the cached snapshot of {self.name!r} ({folder}) holds no weights, and {self._advice(reason)}"
            ) from reason
        return folder

    def _snapshot(self, patterns: list[str], *, local_files_only: bool) -> Path:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                self.name,
                revision=self.revision,
                token=self.token,
                cache_dir=self.cache_dir,
                allow_patterns=patterns,
                local_files_only=local_files_only,
            )
        )

    def _advice(self, error: Exception | None) -> str:
        """What went wrong and what to do, as the end of a sentence."""
        from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

        if error is None:
            return "only local files were allowed (local_files_only=True)"
        if isinstance(error, OfflineModeIsEnabled):
            return "the hub is switched off by HF_HUB_OFFLINE; unset it to download"
        if isinstance(error, GatedRepoError):
            return (
                f"it is gated: accept its terms on the hub page of {self.name} and pass token=… "
                "(or set HF_TOKEN, or run `hf auth login`)"
            )
        if isinstance(error, RepositoryNotFoundError):
            return (
                "the hub knows no such public model; check the spelling of the path or id, and pass token=… "
                "(or set HF_TOKEN) if it is private"
            )
        return f"the hub could not be used: {type(error).__name__}: {error}"


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
