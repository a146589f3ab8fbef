"""What the Haystack components share: their settings, their serialised form, the model."""

import inspect
from typing import Any, TypeVar

import numpy as np

from thalweg.assets import MODEL_NAME
from thalweg.errors import InvalidInputError
from thalweg.integrations._shared import (
    SharedModel,
    check_encode_options,
    check_load_options,
    needs_extra,
    plain,
    shared_model,
)
from thalweg.pooling.vectors import PRECISIONS, Precision, to_precision

with needs_extra("haystack", "haystack"):
    from haystack import Document, default_from_dict, default_to_dict
    from haystack.utils import ComponentDevice, Secret, deserialize_secrets_inplace

_Self = TypeVar("_Self", bound="ThalwegEmbedder")


class ThalwegEmbedder:
    """What the components share: their settings, their serialised form, the model."""

    shows_progress = False
    """Where `progress_bar` does not say."""

    def __init__(
        self,
        model: str = MODEL_NAME,
        *,
        device: ComponentDevice | None = None,
        token: Secret | None = Secret.from_env_var(["HF_API_TOKEN", "HF_TOKEN"], strict=False),  # noqa: B008
        prefix: str | None = None,
        suffix: str = "",
        batch_size: int | None = None,
        progress_bar: bool | None = None,
        normalize_embeddings: bool | None = None,
        trust_remote_code: bool = False,
        local_files_only: bool = False,
        truncate_dim: int | None = None,
        model_kwargs: dict[str, Any] | None = None,
        encode_kwargs: dict[str, Any] | None = None,
        precision: Precision = "float32",
        quantization_ranges: list[list[float]] | None = None,
        revision: str | None = None,
    ) -> None:
        """Nothing is loaded before `warm_up` or the first `run`.

        Args:
            model: a local folder or a hub id; by default the small English model that ships with thalweg.
            device: None takes CUDA where there is one, else the CPU, wherever the pipeline is loaded.
            token: for private and gated repositories.
            prefix: put before every text, as it is, instead of the model's own prompt; None leaves the model its own.
            suffix: put after every text.
            progress_bar: on stderr, with tokens per second; None shows it for documents and not for a single text.
            normalize_embeddings: to length 1; None does what the model says.
            local_files_only: never touch the network.
            truncate_dim: keep the first so many dimensions (before normalisation).
            model_kwargs: other arguments of `thalweg.load`, such as dtype, cache_dir, head.
            encode_kwargs: other arguments of `Embedder.encode`, such as vertical_chunk_size, max_tokens_per_step,
                prompt_name, max_length (off: nothing is cut).
            precision: "float32", "int8", "uint8", "binary" or "ubinary".
            quantization_ranges: (2, d) minima and maxima of the dimensions in a sample of vectors, for int8 and uint8.
            revision: branch, tag or commit of a hub id.
            batch_size, trust_remote_code: taken from pipelines written for other embedders, without effect: texts are
                packed by tokens, and no code of a model's repository is ever run.

        Raises:
            InvalidInputError: options that do not exist or do not go together.
            ValueError: a device that is no `ComponentDevice`.
        """
        if device is not None:
            ComponentDevice.resolve_device(device)
        self.model: str = plain(model)
        self.device = device
        self.token = token
        self.prefix = prefix
        self.suffix = suffix
        self.batch_size = batch_size
        self.progress_bar = progress_bar
        self.normalize_embeddings = normalize_embeddings
        self.trust_remote_code = trust_remote_code
        self.local_files_only = local_files_only
        self.truncate_dim = truncate_dim
        self.model_kwargs: dict[str, Any] = plain(model_kwargs or {})
        self.encode_kwargs: dict[str, Any] = plain(encode_kwargs or {})
        self.precision = precision
        self.quantization_ranges = quantization_ranges
        self.revision = revision
        self._shared: SharedModel | None = None
        self._check_options()

    def warm_up(self) -> None:
        """Load the model, once; components with the same arguments share it."""
        if self._shared is None:
            self._shared = shared_model(
                self.model,
                device=None if self.device is None else self.device.to_torch_str(),
                token=None if self.token is None else self.token.resolve_value(),
                local_files_only=self.local_files_only or None,
                revision=self.revision,
                **self.model_kwargs,
            )

    def to_dict(self) -> dict[str, Any]:
        """The component's settings as Haystack serialises them; the token only if it comes from the environment."""
        settings = {name: getattr(self, name) for name in self.setting_names()}
        settings["device"] = None if self.device is None else self.device.to_dict()
        settings["token"] = None if self.token is None else self.token.to_dict()
        return default_to_dict(self, **settings)

    @classmethod
    def from_dict(cls: type[_Self], data: dict[str, Any]) -> _Self:
        """The component from what `to_dict` gave."""
        return default_from_dict(cls, {**data, "init_parameters": cls.restored(data.get("init_parameters", {}))})

    @classmethod
    def restored(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the constructor from their serialised form."""
        settings = dict(stored)
        if settings.get("device") is not None:
            settings["device"] = ComponentDevice.from_dict(settings["device"])
        deserialize_secrets_inplace(settings, keys=["token"])
        return settings

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shared": None}  # the model is no part of a copy or a pickle, nor is a resolved token

    @classmethod
    def setting_names(cls) -> list[str]:
        """The arguments of the constructor, each kept as an attribute."""
        return [name for name in inspect.signature(ThalwegEmbedder.__init__).parameters if name != "self"]

    def loaded(self) -> SharedModel:
        """The model, loaded now if it was not."""
        self.warm_up()
        assert self._shared is not None
        return self._shared

    def options(self) -> dict[str, Any]:
        """What `Embedder.encode` is to be given."""
        return {
            "prompt": self.prefix,
            "show_progress_bar": self.shows_progress if self.progress_bar is None else self.progress_bar,
            "normalize_embeddings": self.normalize_embeddings,
            "truncate_dim": self.truncate_dim,
            **self.encode_kwargs,
        }

    def quantized(self, vectors: list[list[float]]) -> list[list[float]]:
        """(n, d) vectors in the precision that was asked for."""
        if self.precision == "float32" or not vectors:
            return vectors
        array = np.array(vectors, dtype=np.float32)
        ranges = None if self.quantization_ranges is None else np.array(self.quantization_ranges, dtype=np.float32)
        if ranges is not None and ranges.shape != (2, array.shape[1]):
            raise InvalidInputError(f"quantization_ranges must be (2, {array.shape[1]}), but are {ranges.shape}")
        result: list[list[float]] = to_precision(array, self.precision, ranges).tolist()
        return result

    def _check_options(self) -> None:
        check_load_options(self.model_kwargs)
        check_encode_options(self.encode_kwargs)
        own = {"device", "token", "local_files_only", "revision", "trust_remote_code"} & set(self.model_kwargs)
        own |= {"normalize_embeddings", "truncate_dim", "precision", "batch_size"} & set(self.encode_kwargs)
        if own:
            raise InvalidInputError(f"{own.pop()} is an argument of {type(self).__name__} itself; give it there")
        clash = {"prompt", "prompt_name"} & set(self.encode_kwargs)
        if self.prefix is not None and clash:
            raise InvalidInputError(f"prefix={self.prefix!r} and {clash.pop()} in encode_kwargs exclude each other")
        if self.precision not in PRECISIONS:
            raise InvalidInputError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.precision in ("int8", "uint8") and self.quantization_ranges is None:
            raise InvalidInputError(
                f"precision={self.precision!r} needs quantization_ranges, (2, d) minima and maxima of a sample of "
                "vectors: with ranges of their own, queries and documents could not be compared"
            )


def document_list(documents: Any, component: str, hint: str = "") -> list[Document]:
    """`documents`, if they are a list of Documents.

    Raises:
        TypeError: naming the component, with the hint at its end.
    """
    listed = isinstance(documents, list)
    wrong: list[Any] = [item for item in documents if not isinstance(item, Document)] if listed else [documents]
    if wrong:
        raise TypeError(
            f"{component} expects a list of Documents, not {'one with ' * listed}{type(wrong[0]).__name__}{hint}"
        )
    checked: list[Document] = documents
    return checked
