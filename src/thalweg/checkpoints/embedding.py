"""How a folder says that its texts become vectors: the files of sentence-transformers, read and written.

Files, whose formats differ between releases (what is written here suits 5.x and 6.x):
    modules.json                        [the model in the root, Pooling, (Lexicon), (Normalize)], with their classes
    1_Pooling/config.json               which token vectors are taken
    2_Lexicon                           see lexicon.py; few models have one
    3_Normalize/config.json             {}: the folder's presence is what counts (2_Normalize without a lexicon)
    config_sentence_transformers.json   prompts, similarity
    sentence_bert_config.json           max_seq_length
    thalweg.json                        what only thalweg knows: end tokens, head, special tokens
"""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from thalweg.assets import MODULE_FILE, module_file
from thalweg.checkpoints.fields import Fields, read_json_object, read_optional_object, write_json
from thalweg.checkpoints.lexicon import read_lexicon, write_lexicon
from thalweg.checkpoints.tokens import ends_with_eos
from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.pooling import POOLINGS, LastToken, Lexicon, Mean
from thalweg.storage.untrusted_json import read_json
from thalweg.tokenization.backend import SpecialTokens

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
ModuleClasses = Literal["stock", "thalweg", "either"]
"""Whose classes modules.json names: those of sentence-transformers, those of thalweg, or those of the folder's own
`thalweg_module.py`, which are thalweg's where it is installed and else sentence-transformers'."""

OWN_FILE = "thalweg.json"

MAX_EOS = 256
"""End tokens that may be put after a text; published models have one, or a few."""

_STOCK = "sentence_transformers.models."  # the names before 5.4 are the only ones that every release resolves
_PACKAGE = "thalweg.integrations.sentence_transformers."
_FILE = f"{MODULE_FILE.removesuffix('.py')}."
_CLASSES: dict[str, tuple[str, str, str | None]] = {
    "stock": (f"{_STOCK}Transformer", f"{_STOCK}Pooling", None),
    "thalweg": (f"{_PACKAGE}ThalwegModule", f"{_PACKAGE}Pooling", f"{_PACKAGE}LexiconModule"),
    "either": (f"{_FILE}Model", f"{_FILE}Pooling", f"{_FILE}Lexicon"),
}
_OWN_CLASS = re.compile(r"([\w.-]{1,96}/[\w.-]{1,96}--)?(?P<file>[A-Za-z_]\w{0,95})\.[a-z]?[A-Z]\w{0,95}", re.ASCII)
_LIBRARIES = {"numpy", "tokenizers", "torch", "transformers"}
MAX_PATH = 255
_AFTER_MODEL = ("Pooling", "Lexicon", "Normalize")

# sentence-transformers' name of each pooling, and the older flag for it. Only these flags are written: 6.x and 5.x
# read them, and text-embeddings-inference reads nothing else.
_POOLING = {kind.stored_name: kind.name for kind in POOLINGS.values()}
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    Mean.stored_flag: Mean.stored_name,
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
} | {kind.stored_flag: kind.stored_name for kind in POOLINGS.values()}


@dataclass(frozen=True)
class EmbeddingConfig:
    """How token vectors become the vector of a text.

    Args:
        pooling: "last" takes the final token's vector, "mean" the average of all.
        normalize: whether the result is scaled to length 1.
        prompts: texts by name that may be put before a text ("query", "document", …).
        default_prompt_name: the prompt used where the caller names none.
        similarity: how vectors of this model are compared.
        append_eos: whether an end token is put after every text.
        n_eos: how many of them; with last-token pooling the vector of a text is the mean over theirs.
        max_seq_length: the length that sentence-transformers would cut texts to. Recorded, not applied: nothing is cut
            unless the user asks for it.
        untuned: the folder is a plain language model that says nothing about embeddings; all of the above is assumed.
        include_prompt: whether a mean runs over the prompt's tokens too.
        head: the one of the model's embedding heads that a pooled vector goes through; None for none.
        lexicon: what is put beside the mean of hidden vectors; None for nothing.
        special_tokens: what the literal of a special token in a text is read as; see `thalweg.load`.
    """

    pooling: str = LastToken.name
    normalize: bool = True
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity: Similarity = "cosine"
    append_eos: bool = True
    n_eos: int = 1
    max_seq_length: int | None = None
    untuned: bool = False
    include_prompt: bool = True
    head: str | None = None
    lexicon: Lexicon | None = None
    special_tokens: SpecialTokens = "token"

    def __post_init__(self) -> None:
        _one_of("pooling", self.pooling, tuple(POOLINGS))
        _one_of("similarity", self.similarity, get_args(Similarity))
        _one_of("special_tokens", self.special_tokens, get_args(SpecialTokens))
        if self.default_prompt_name is not None:
            _one_of("default_prompt_name", self.default_prompt_name, tuple(self.prompts))
        if not 1 <= self.n_eos <= MAX_EOS:
            raise InvalidInputError(f"n_eos must be from 1 to {MAX_EOS}, but is {self.n_eos}")
        if self.lexicon is not None and (self.pooling != Mean.name or self.head is not None):
            raise InvalidInputError(
                f"a lexicon goes with the mean of all tokens and without a head, not with pooling {self.pooling!r} and "
                f"head {self.head!r:.80}"
            )


def read_embedding_config(
    folder: Path, default: EmbeddingConfig | None = None, *, d_model: int | None = None
) -> EmbeddingConfig:
    """What a folder says about pooling, normalisation and prompts; no code of the folder is run.

    `default` is what its format implies where it says nothing. `d_model` is the width of the model's vectors, where
    the caller knows it: a lexicon must have been made for it.

    Raises:
        CheckpointError: a pooling or a module that thalweg does not have, quoting it.
    """
    settings = folder / "config_sentence_transformers.json"
    general = Fields(read_optional_object(settings), str(settings))
    prompts = _prompts(general) if default is None or "prompts" in general.raw else default.prompts
    own = Fields(read_optional_object(folder / OWN_FILE), str(folder / OWN_FILE))
    common: dict[str, Any] = {
        "prompts": prompts,
        "default_prompt_name": general.text("default_prompt_name"),
        "similarity": general.text("similarity_fn_name") or "cosine",
        "n_eos": own.integer("n_eos", default.n_eos if default else 1, maximum=MAX_EOS),
        "special_tokens": own.text("special_tokens") or "token",
        "head": own.text("head") if "head" in own.raw or default is None else default.head,
    }
    try:
        if not (folder / "modules.json").is_file():
            return replace(default, **common) if default else EmbeddingConfig(**common, untuned=True)
        pooling, include_prompt, lexicon, normalize = _read_modules(folder, d_model)
        return EmbeddingConfig(
            **common,
            pooling=pooling,
            include_prompt=include_prompt,
            lexicon=lexicon,
            normalize=normalize,
            append_eos=own.flag("append_eos", True) if "append_eos" in own.raw else _append_eos(folder, pooling),
            max_seq_length=_max_seq_length(folder),
        )
    except InvalidInputError as error:
        raise CheckpointError(f"{settings}: {error}") from error


def save_embedding_config(
    folder: Path, config: EmbeddingConfig, d_model: int, *, classes: ModuleClasses = "stock"
) -> None:
    """Write the sentence-transformers files of a folder (which must exist), for 5.x and 6.x alike.

    `d_model` is the width of the token vectors.
    """
    model, pooling, lexicon = _CLASSES[classes]
    modules = [("", model), ("Pooling", pooling)]
    if config.lexicon is not None:
        assert lexicon is not None  # module_classes has seen to that
        modules.append(("Lexicon", lexicon))
    modules += [("Normalize", f"{_STOCK}Normalize")] * config.normalize
    paths = {name: name and f"{i}_{name}" for i, (name, _) in enumerate(modules)}
    write_json(
        folder / "modules.json",
        [{"idx": i, "name": str(i), "path": paths[name], "type": kind} for i, (name, kind) in enumerate(modules)],
    )
    if classes == "either":
        shutil.copyfile(module_file(), folder / MODULE_FILE)
    flags = {flag: _POOLING.get(mode) == config.pooling for flag, mode in _POOLING_FLAGS.items()}
    write_json(
        folder / paths["Pooling"] / "config.json",
        {"word_embedding_dimension": d_model, **flags, "include_prompt": config.include_prompt},
    )
    if config.lexicon is not None:
        write_lexicon(folder / paths["Lexicon"], config.lexicon, d_model)
    if config.normalize:
        # Releases differ in whether they read it; an empty object suits all, and git keeps no empty folder.
        write_json(folder / paths["Normalize"] / "config.json", {})
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": config.prompts,
            "default_prompt_name": config.default_prompt_name,
            "similarity_fn_name": config.similarity,
        },
    )
    save_model_settings(folder, config)


def save_model_settings(folder: Path, config: EmbeddingConfig) -> None:
    """The part of `save_embedding_config` that belongs to the first module, the model."""
    if config.max_seq_length is not None:
        write_json(
            folder / "sentence_bert_config.json", {"max_seq_length": config.max_seq_length, "do_lower_case": False}
        )
    names = ("append_eos", "n_eos", "head", "special_tokens")
    write_json(folder / OWN_FILE, {name: getattr(config, name) for name in names})


def _read_modules(folder: Path, d_model: int | None) -> tuple[str, bool, Lexicon | None, bool]:
    """(pooling, include_prompt, lexicon, normalize) of modules.json."""
    path = folder / "modules.json"
    modules = read_json(path)
    if not isinstance(modules, list) or not modules or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{path} must hold a list of modules")
    # The first module is the language model. Its weights must be where we look for them.
    if modules[0].get("path"):
        raise CheckpointError(
            f"{path}: the model lies in {modules[0]['path']!r:.80}; move its files into {folder} and set the path to ''"
        )
    kinds = [Fields(module, str(path)).text("type") or "" for module in modules]
    if not _may_be_model(kinds[0]):
        raise CheckpointError(
            f"{path}: the first module must be a language model, but its type is {kinds[0]!r:.80}: neither "
            "sentence-transformers' Transformer, nor a class of thalweg or of the folder's own code (which is not run)"
        )
    kinds = kinds[1:]
    ours = ("sentence_transformers.", _PACKAGE, _FILE)
    names = [kind.rpartition(".")[2].removesuffix("Module") if kind.startswith(ours) else kind for kind in kinds]
    for kind, name in zip(kinds, names, strict=True):
        if name not in _AFTER_MODEL:
            raise CheckpointError(
                f"{path}: module type {kind!r:.80} is not supported; thalweg reads a language model, Pooling, Lexicon "
                "and Normalize"
            )
    places = dict(zip(names, modules[1:], strict=True))
    if names[:1] != ["Pooling"] or names != [name for name in _AFTER_MODEL if name in places]:
        raise CheckpointError(
            f"{path}: expected Pooling, then perhaps Lexicon and Normalize after the model, but found {names[:8]}"
        )
    pooling, include_prompt = _read_pooling(_inside(folder, places["Pooling"]) / "config.json")
    lexicon = None
    if "Lexicon" in places:
        place = _inside(folder, places["Lexicon"])
        lexicon, width = read_lexicon(place)
        if d_model not in (None, width):
            raise CheckpointError(f"{place}: made for vectors of {width} dimensions, but the model has {d_model}")
    if "Normalize" in places:
        _check_normalize(_inside(folder, places["Normalize"]) / "config.json")
    return pooling, include_prompt, lexicon, "Normalize" in places


def _read_pooling(path: Path) -> tuple[str, bool]:
    fields = Fields(read_json_object(path), str(path))
    mode = fields.raw.get("pooling_mode")
    if mode is None:
        mode = [name for flag, name in _POOLING_FLAGS.items() if fields.flag(flag, False)] or [Mean.stored_name]
    modes = [mode] if isinstance(mode, str) else mode
    if not isinstance(modes, list) or not all(isinstance(name, str) for name in modes):
        raise fields.wrong("pooling_mode", mode, "a name or a list of names")
    if len(modes) != 1 or modes[0] not in _POOLING:
        named = "+".join(modes)
        raise CheckpointError(f"{path}: pooling {named:.80} is not supported; known: {', '.join(_POOLING)}")
    return _POOLING[modes[0]], fields.flag("include_prompt", True)


def _check_normalize(path: Path) -> None:
    fields = Fields(read_optional_object(path), str(path))
    for key in ("module_input_name", "module_output_name"):
        fields.require(key, "sentence_embedding", ("sentence_embedding",), "only the text's vector can be normalised")


def _prompts(general: Fields) -> dict[str, str]:
    prompts = general.section("prompts").raw
    if not all(isinstance(prompt, str) or prompt is None for prompt in prompts.values()):
        raise general.wrong("prompts", prompts, "texts by name")
    return {name: prompt for name, prompt in prompts.items() if prompt is not None}


def _append_eos(folder: Path, pooling: str) -> bool:
    """For folders that do not say. A last token's vector means a closing token, whoever is to put it there; for a mean
    it is what the tokenizer does, since sentence-transformers takes its ids as they come."""
    return POOLINGS[pooling].needs_eos or ends_with_eos(folder)


def _max_seq_length(folder: Path) -> int | None:
    path = folder / "sentence_bert_config.json"
    fields = Fields(read_optional_object(path), str(path))
    # Some say 10^30 for no limit.
    return None if fields.raw.get("max_seq_length") is None else fields.integer("max_seq_length", maximum=2**128)


def _inside(folder: Path, module: dict[str, Any]) -> Path:
    """The folder of a module, which may not lie outside the checkpoint's."""
    path = Fields(module, str(folder / "modules.json")).text("path")
    relative = PurePosixPath(path or "")
    # No file system takes a longer name, and Python none that cannot be printed.
    nameable = path is not None and path.isprintable() and len(path.encode()) <= MAX_PATH
    if not nameable or relative.is_absolute() or ".." in relative.parts or not relative.parts:
        raise CheckpointError(f"{folder / 'modules.json'}: {path!r:.80} is not a folder of this checkpoint")
    return folder / relative


def _may_be_model(kind: str) -> bool:
    """Whether a module's type can be a language model: thalweg runs the weights itself, and no code of the folder, so
    that only the name tells.

    The published models bring a class of their own: `file.Class`, with `org/name--` before it where the file lies in
    another repository. What is nobody's class, as `os.system`, means that modules.json is not what it should be.
    """
    name = kind.rpartition(".")[2]
    if kind.startswith("sentence_transformers."):
        return name == "Transformer"
    if kind.startswith((_PACKAGE, _FILE)):
        return name in ("ThalwegModule", "Model")
    own = _OWN_CLASS.fullmatch(kind)
    return own is not None and own["file"] not in sys.stdlib_module_names | _LIBRARIES


def _one_of(key: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        known = f"{', '.join(allowed):.300}" or "(none defined)"
        raise InvalidInputError(f"{key} must be one of {known}, but is {value!r:.80}")
