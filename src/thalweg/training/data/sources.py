"""What a spec stands for: files, with name, weight, instructions and licence.

FILE | FOLDER | GLOB                            a format with rows of `thalweg.inputs.formats`
hub:org/name[/CONFIG | /FILE][:SPLIT][#REVISION]
NAME[/MEMBER][=FOLDER]                          a named set of `sets.py`, from the hub or from a local copy
any of these with @WEIGHT at its end
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from thalweg.errors import CorpusError, InvalidInputError
from thalweg.inputs.files import InputFile
from thalweg.inputs.formats import TABLE_SUFFIXES
from thalweg.training.data.files import find_files, group_files, is_data_file
from thalweg.training.data.hub import Download, LocalCopy, Repository, config_splits, read_card
from thalweg.training.data.sets import SETS, Member, NamedSet

_WEIGHTED = re.compile(r"(.+)@([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf)")
_HUB = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:/([^:#]+))?(?::([^:#]+))?(?:#(.+))?")


@dataclass(frozen=True)
class Source:
    """One data set before it is read.

    name: of the data set; files: its rows, in this order; origin, revision, licence: for a model card; weight: the
    share of its rows that is drawn; instructions: put before queries, row by row in turn where there are several.
    """

    name: str
    files: tuple[InputFile, ...]
    origin: str
    revision: str | None = None
    licence: str | None = None
    weight: float = 1.0
    instructions: tuple[str, ...] = ()
    share: float = 1.0


_Known = TypeVar("_Known", Member, Source)


class _Spec(NamedTuple):
    target: str
    weight: float


def resolve_specs(specs: Sequence[str]) -> list[Source]:
    """The data sets of all specs, each with a name of its own.

    Raises:
        InvalidInputError: no spec, or a weight that is none.
        CorpusError: a spec that stands for nothing.
    """
    if isinstance(specs, str) or not specs:
        raise InvalidInputError(f"specs must be a list of at least one data set, got {specs!r}")
    sources: dict[str, Source] = {}
    for source in (source for spec in specs for source in resolve(spec)):
        name, number = source.name, 2
        while name in sources:
            name, number = f"{source.name}-{number}", number + 1
        sources[name] = replace(source, name=name)
    return list(sources.values())


def resolve(spec: str) -> list[Source]:
    """The data sets that one spec stands for."""
    target, weight = _split_weight(spec)
    if target.startswith("hub:"):
        sources = [_of_hub(target)]
    elif (named := re.split("[/=]", target, maxsplit=1)[0]) in SETS and not Path(target).exists():
        sources = _of_set(target, SETS[named])
    else:
        sources = _of_path(target)
    return [replace(source, weight=source.weight * weight) for source in sources]


def _split_weight(spec: str) -> _Spec:
    match = None if Path(spec).exists() else _WEIGHTED.fullmatch(spec)
    if match is None:
        return _Spec(spec, 1.0)
    weight = float(match[2])
    if not (math.isfinite(weight) and 0 < weight <= 1):
        raise InvalidInputError(
            f"{spec!r}: the weight must be above 0 and at most 1, the share of the rows that is drawn, got {match[2]}; "
            "to see a data set more often, train more epochs or lower the weights of the others"
        )
    return _Spec(match[1], weight)


def _of_path(target: str) -> list[Source]:
    try:
        files = find_files(target)
    except CorpusError as error:
        known = ", ".join(SETS)
        raise CorpusError(
            f"data set {target!r}: {error}; a data set is a file or folder of {', '.join(TABLE_SUFFIXES)}, "
            f"hub:org/name, or one of: {known}"
        ) from error
    groups = group_files(files, Path(target) if Path(target).is_dir() else None)
    return [Source(name, tuple(group), _file_names(group)) for name, group in groups.items()]


def _of_hub(target: str) -> Source:
    match = _HUB.fullmatch(target)
    if match is None:
        raise CorpusError(f"{target!r} is no data set of the hub; write hub:org/name[/CONFIG][:SPLIT][#REVISION]")
    name, inner, split, revision = match.groups()
    repository = Repository(name, revision)
    if inner is not None and is_data_file(inner):
        if split is not None:
            raise CorpusError(f"{target!r} names files and a split; leave one of them out")
        download = repository.files(inner)
        own_name = next(iter(group_files(_inputs(download))))
    else:
        download = repository.split(inner, split)
        own_name = "-".join(filter(None, [name.partition("/")[2], inner]))
    origin = f"hub:{name}" + (f"/{inner}" if inner else "") + (f":{split}" if split else "")
    return Source(own_name, _inputs(download), origin, download.commit, download.licence)


def _of_set(target: str, named: NamedSet) -> list[Source]:
    head, _, folder = target.partition("=")
    name, _, wanted = head.partition("/")
    copy = Path(folder) if folder else None
    if copy is not None and not copy.is_dir():
        raise CorpusError(f"{target!r}: there is no folder {folder!r} with a copy of {named.repository}")
    if named.members:
        chosen = _chosen(name, {member.name: member for member in named.members}, wanted)
        repository = None if copy else Repository(named.repository)
        return [_member(member, named, repository, copy) for member in chosen]
    return _configs(name, named, copy, wanted)


def _member(member: Member, named: NamedSet, repository: Repository | None, copy: Path | None) -> Source:
    revision = None
    if repository is not None:
        download = repository.files(member.file)
        files, revision = _inputs(download), download.commit
    else:
        assert copy is not None
        if not (copy / member.file).is_file():
            raise CorpusError(f"{copy} has no {member.file!r}, which is data set {member.name!r} of {named.repository}")
        files = tuple(find_files(str(copy / member.file)))
    return Source(
        member.name,
        files,
        f"hub:{named.repository}/{member.file}",
        revision,
        member.licence,
        instructions=member.instructions,
        share=member.share,
    )


def _configs(name: str, named: NamedSet, copy: Path | None, wanted: str) -> list[Source]:
    """Data sets of a repository whose card lists them; of a copy without a card, its files."""
    if copy is not None and not config_splits(read_card(copy)):
        groups = group_files(find_files(str(copy)), copy)
        origin = f"hub:{named.repository}"
        found = {stem: Source(stem, tuple(files), f"{origin}/{stem}", None) for stem, files in groups.items()}
    else:
        repository = LocalCopy(named.repository, copy) if copy else Repository(named.repository)
        configs = [config for config in config_splits(repository.card) if named.configs in config.lower()]
        if wanted:
            configs = [wanted]
        if not configs:
            known = ", ".join(config_splits(repository.card)) or "none"
            raise CorpusError(
                f"{named.repository!r} has no config with {named.configs!r} in its name; it has: {known}; name one: "
                f"{name}/CONFIG"
            )
        found = {}
        for config in configs:
            download = repository.split(config)
            found[config] = Source(config, _inputs(download), f"hub:{named.repository}/{config}", download.commit)
    return [replace(source, licence=named.licence) for source in _chosen(name, found, wanted)]


def _chosen(name: str, known: Mapping[str, _Known], wanted: str) -> list[_Known]:
    if wanted and wanted not in known:
        raise CorpusError(f"{name!r} has no data set {wanted!r}; it has: {', '.join(known)}")
    return [known[wanted]] if wanted else list(known.values())


def _inputs(download: Download) -> tuple[InputFile, ...]:
    return tuple(file for path in download.files for file in find_files(str(path)))


def _file_names(files: Sequence[InputFile]) -> str:
    """For a model card: without the folders of the machine."""
    return ", ".join(PurePosixPath(file.path).name for file in files)
