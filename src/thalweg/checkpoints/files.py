"""The tensor files of a folder: which they are, what they hold, and their tensors as views of a memory map."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from thalweg.checkpoints.fields import MAX_INTEGER, listing, read_json_object
from thalweg.errors import CheckpointError

WEIGHT_FILES = ("model.safetensors", "consolidated.safetensors", "pytorch_model.bin")
"""In order of preference; each may be sharded (`model-00001-of-00003.safetensors`), usually with `….index.json`."""

STANDALONE = ".pth"
"""Ending of a weight file that may have any name and needs no config beside it; read if it is the folder's only one."""

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

MAX_TENSORS = 1 << 16
"""Most tensors of all files together; the deepest public model has a thousand."""

LEAST_MAPPED, MOST_MAPPED = 8 << 20, 32 << 20
"""Bytes of a file that stay in memory after its tensors were converted and dropped (see `stream`)."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is, known without reading it."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def stated(cls, path: Path, shape: list[int], dtype: str) -> TensorInfo:
        """From an entry of a safetensors header whose file is not here.

        Raises:
            ValueError: no shape, or a dtype that torch lacks.
        """
        sizes = [size for size in shape if isinstance(size, int) and 0 <= size <= MAX_INTEGER]
        if len(sizes) != len(shape) or dtype not in SAFETENSORS_DTYPES:
            raise ValueError(f"a tensor of shape {shape!r:.80} and dtype {dtype!r:.80}")
        return cls(path, tuple(sizes), SAFETENSORS_DTYPES[dtype])


def choose_weights(names: Collection[str]) -> tuple[str, ...]:
    """The files of the one preferred weight format among those of a folder or repository; () if there is none.

    The index file, where there is one, comes first.
    """
    for single in WEIGHT_FILES:
        if single in names:
            return (single,)
        index = f"{single}.index.json"
        shards = tuple(sorted(name for name in names if _shard_pattern(single).fullmatch(name)))
        if index in names or shards:
            return ((index,) if index in names else ()) + shards
    standalone = tuple(name for name in names if name.endswith(STANDALONE) and "/" not in name)
    return standalone if len(standalone) == 1 else ()


def has_weights(source: Path) -> bool:
    """Whether a folder's files of weights are there, all of them, or the one file; they are not read."""
    try:
        return bool(scan(source))
    except CheckpointError:
        return False


def scan(source: Path) -> dict[str, TensorInfo]:
    """Every tensor of a folder's weight files, or of one weight file, by its stored name; no tensor is read.

    Raises:
        CheckpointError: no weights, a corrupt file, a tensor in two shards, shards missing, or an index that does not
            describe its shards.
    """
    folder = source if source.is_dir() else source.parent
    present = [path.name for path in folder.iterdir() if path.is_file()] if source == folder else [source.name]
    chosen = choose_weights(present)
    if not chosen:
        raise CheckpointError(
            f"{folder} holds no weights: looked for {', '.join(WEIGHT_FILES)} (or their shards) and for one "
            f"*{STANDALONE} (of several, give the path of one), found {listing(present) or 'no file at all'}"
        )
    is_indexed = chosen[0].endswith(".index.json")
    shards = chosen[1:] if is_indexed else chosen
    index = _read_index(folder / chosen[0], shards) if is_indexed else None
    if index is None:
        _check_numbering(folder, shards)

    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        path = folder / shard
        for name, tensor in open_tensors(path).items():
            if name in tensors:
                raise CheckpointError(f"tensor {name} is stored twice: in {tensors[name].path} and in {path}")
            tensors[name] = TensorInfo(path, tuple(tensor.shape), tensor.dtype)
        if len(tensors) > MAX_TENSORS:
            raise CheckpointError(f"{path} holds more tensors than any model has: the limit is {MAX_TENSORS:,}")
    if index is not None:
        _check_index(folder / chosen[0], index, tensors)
    return tensors


def stream(
    path: Path, names: Collection[str], copies: Mapping[str, torch.dtype] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The named tensors of one file, each a view of the file's memory map that stays valid while it is referenced.

    Of those in `copies` a copy in that dtype. The file is mapped afresh every few MiB: pages that were read in
    order to convert a tensor are then given back as soon as the caller drops the view, instead of staying resident
    beside the converted weights.
    """
    copies, mapped_afresh = copies or {}, _is_mapped(path)
    most = min(max(path.stat().st_size // 64, LEAST_MAPPED), MOST_MAPPED)  # mapping takes milliseconds
    waiting = [name for name in open_tensors(path) if name in names]
    while waiting:
        mapped = open_tensors(path)
        read = 0
        while waiting and (read < most or not mapped_afresh):
            name = waiting.pop(0)
            tensor = mapped.pop(name)
            read += tensor.nbytes
            if name in copies:
                is_large = tensor.nbytes > most and mapped_afresh
                tensor = (
                    _copy_in_parts(path, name, copies[name], most) if is_large else tensor.to(copies[name], copy=True)
                )
            yield name, tensor


def _copy_in_parts(path: Path, name: str, dtype: torch.dtype, most: int) -> Tensor:
    """One tensor in a dtype, with at most so many bytes of the file in memory: embeddings may be most of a file."""
    stored = open_tensors(path)[name]
    out = torch.empty(stored.shape, dtype=dtype, device="cpu")
    rows = max(1, most * len(stored) // stored.nbytes)
    for start in range(0, len(stored), rows):
        part = slice(start, start + rows)
        out[part] = open_tensors(path)[name][part]
    return out


def open_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one file as CPU views of its memory map, in the file's order.

    Nothing but tensors is ever deserialised: safetensors hold nothing else, and pickles go through torch's
    restricted reader.

    Raises:
        CheckpointError: the file is missing, truncated or corrupt, or a pickle of anything but tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"weight file {path} does not exist")
    read: Callable[[Path], dict[str, Tensor]] = _open_safetensors if path.suffix == ".safetensors" else _open_pickle
    with torch.device("cpu"):  # the readers make tensors on the default device, whatever they are told
        return read(path)


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except Exception as error:  # a header may name dtypes that torch lacks, which is an error of any kind
        raise _corrupt(path, error) from error


def _open_pickle(path: Path) -> dict[str, Tensor]:
    try:
        if _is_mapped(path):
            _check_archive(path)
        with warnings.catch_warnings():
            # Whether the restricted reader copes with the file shows at once; the guess beforehand is noise.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_mapped(path))
    except pickle.UnpicklingError as error:
        # torch's own text advises weights_only=False; leave it to the traceback.
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        if forbidden is None:
            raise _corrupt(path, "not a pickle of tensors") from error
        raise CheckpointError(
            f"{path} holds Python objects besides tensors ({forbidden[1]}) and would run code when loaded, which "
            "thalweg never does; use a safetensors version of this checkpoint"
        ) from error
    except Exception as error:  # the restricted reader raises whatever its input leads it to
        raise _corrupt(path, error) from error
    entries = content if isinstance(content, dict) else {"the file": content}
    for name, value in entries.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path} must hold tensors by name, but one is under {name!r:.80}")
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} must hold tensors by name, but {name!r:.80} is a {type(value).__name__}; "
                "save model.state_dict() itself"
            )
    _check_storages(path, entries)
    return dict(entries)


def _is_mapped(path: Path) -> bool:
    """Pickles from before torch 1.6 are not zip archives and cannot be mapped."""
    return path.suffix == ".safetensors" or zipfile.is_zipfile(path)


def _check_archive(path: Path) -> None:
    """torch stores the entries of its archives as they are: a compressed one could become any size in memory."""
    with zipfile.ZipFile(path) as archive:
        packed = next(
            (entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED), None
        )
    if packed is not None:
        raise ValueError(f"its entry {packed!r:.80} is compressed")


def _check_storages(path: Path, tensors: dict[str, Tensor]) -> None:
    """Tensors may share numbers, as a head does that is tied to the embeddings, or say that one number is a million:
    then a small file becomes a large model. All together are at most twice what is stored."""
    plain = all(type(t) in (Tensor, nn.Parameter) and t.layout == torch.strided for t in tensors.values())
    if not plain or any(t.device.type != "cpu" or t.is_quantized for t in tensors.values()):
        raise CheckpointError(f"{path} holds tensors that are sparse, quantised or without numbers; save dense ones")
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors.values()}
    if sum(t.nbytes for t in tensors.values()) > 2 * sum(storages.values()):
        raise CheckpointError(f"{path} holds tensors that repeat the same numbers; save contiguous ones")


def _corrupt(path: Path, reason: object) -> CheckpointError:
    with path.open("rb") as file:
        is_pointer = file.read(40).startswith(b"version https://git-lfs")
    if is_pointer:
        return CheckpointError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` in its repository")
    first_line = str(reason).strip().split("\n")[0]
    return CheckpointError(f"{path} is truncated or corrupt ({first_line:.300}); download it again")


def _shard_pattern(single: str) -> re.Pattern[str]:
    stem, extension = single.split(".")
    return re.compile(rf"{stem}-(\d+)-of-(\d+)\.{extension}")


def _check_numbering(folder: Path, shards: tuple[str, ...]) -> None:
    """Without an index the shards' own numbers must say that all are there."""
    numbers = [re.search(r"-(\d+)-of-(\d+)\.", shard) for shard in shards]
    found = [(int(match[1]), int(match[2])) for match in numbers if match]
    if found and sorted(found) != [(i + 1, len(found)) for i in range(len(found))]:
        raise CheckpointError(f"shards are missing in {folder}: found {listing(shards)} and no index file")


def _read_index(path: Path, shards: tuple[str, ...]) -> dict[str, str]:
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{path} has no weight_map from tensor names to files")
    named = set(weight_map.values())
    if named != set(shards):
        raise CheckpointError(
            f"{path} does not match the files beside it: missing {listing(named - set(shards)) or 'none'}; "
            f"not in the index {listing(set(shards) - named) or 'none'}"
        )
    return weight_map


def _check_index(path: Path, index: dict[str, str], tensors: dict[str, TensorInfo]) -> None:
    actual = {name: info.path.name for name, info in tensors.items()}
    wrong = {name for name in index.keys() | actual.keys() if index.get(name) != actual.get(name)}
    if wrong:
        described = (f"{name} (index: {index.get(name)}, file: {actual.get(name)})" for name in wrong)
        raise CheckpointError(f"{path} disagrees with its shards about {len(wrong)} tensors: {listing(described)}")
