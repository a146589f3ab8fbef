"""What callers pass by mistake is refused with the call that was meant; what they may pass goes on working."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import thalweg
from tests.corpus.tiny import write_model
from thalweg import Embedder, Embedding, Failure, InvalidInputError, NumericalError, ThalwegError

TEXTS = ["What?", "Paris is a town"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return thalweg.load(write_model(tmp_path_factory.mktemp("given")))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"q": "What?", "d": "Paris"}, r"only the keys would be embedded; pass its values: encode\(list\(texts"),
        (pd.DataFrame({"text": TEXTS}), r"only the names of its columns would be embedded; pass one column: encode\("),
        (Path("a.txt"), "a path is not a text: open it"),
        (b"abc", r"decode it first: data.decode\(\)"),
        (None, "must be a str or an iterable of str, got NoneType: None"),
        (5, "got int: 5"),
        (["a", None], r"texts\[1\] must be a str, got NoneType: None"),
        (["a", 5.0], r"texts\[1\] must be a str, got float: 5.0"),
        (["a", Path("b.txt")], "a path is not a text: open it"),
        ([b"abc"], "decode it first"),
        (np.array([["a", "b"]]), r"texts\[0\] must be a str, got ndarray"),
    ],
)
@pytest.mark.parametrize("function", ["encode", "encode_query", "encode_document"])
def test_what_is_no_list_of_texts_is_refused(model: Embedder, function: str, texts: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        getattr(model, function)(texts)


@pytest.mark.parametrize(
    "texts",
    [
        pd.Series(TEXTS),
        pd.Series(TEXTS, index=[7, 7]),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        tuple(TEXTS),
        dict.fromkeys(TEXTS).keys(),
    ],
    ids=lambda texts: type(texts).__name__,
)
def test_any_iterable_of_texts_is_taken(model: Embedder, texts: Any) -> None:
    np.testing.assert_allclose(model.encode(texts), model.encode(TEXTS), atol=1e-6)
    streamed = list(model.encode_stream(texts))
    np.testing.assert_allclose([result.vector for result in streamed], model.encode(TEXTS), atol=1e-6)


def test_generators_and_columns_of_data_sets_are_taken(model: Embedder) -> None:
    import datasets

    column = datasets.Dataset.from_dict({"text": TEXTS})["text"]
    for texts in (column, (text for text in TEXTS), iter(TEXTS)):
        np.testing.assert_allclose(model.encode(texts), model.encode(TEXTS), atol=1e-6)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ("abc", r"got one str: 'abc'; put it in a list: encode_stream\(\[document\]\)"),
        (b"abc", "got one bytes"),
        (io.StringIO("abc"), "got one StringIO"),
        ({"a": "b"}, "only the keys would be embedded"),
        (pd.DataFrame({"text": TEXTS}), "only the names of its columns"),
        (Path("a.txt"), "a path is not a text"),
        (None, "got NoneType"),
        (3, "got int"),
    ],
)
def test_what_is_no_iterable_of_documents_is_refused_at_once(model: Embedder, documents: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        model.encode_stream(documents)


def closed_file() -> io.StringIO:
    file = io.StringIO("text")
    file.close()
    return file


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (("id", "text"), "of \\(id, text\\) pairs pass the texts only"),
        ({"text": "x"}, "pass its text, such as row\\['text'\\]"),
        (Path("a.txt"), "open it"),
        (None, "got NoneType: None"),
        (5, "got int: 5"),
        ([1, 2], "a piece of text must be str or bytes, not int"),
        (closed_file, "is closed; open it again"),
    ],
)
def test_what_is_no_document_fails_alone(model: Embedder, document: Any, message: str) -> None:
    made = (lambda: document()) if callable(document) else (lambda: document)
    with pytest.raises(InvalidInputError, match=message):
        list(model.encode_stream(["a", made(), "b"]))
    results = list(model.encode_stream(["a", made(), "b"], on_error="yield"))
    assert [type(result) for result in results] == [Embedding, Failure, Embedding]
    assert [result.index for result in results] == [0, 1, 2]


CALLS: list[Callable[[Embedder, Any], Any]] = [
    lambda model, value: model.encode(value),
    lambda model, value: model.encode(["a"], prompt=value),
    lambda model, value: model.encode(["a"], prompt_name=value),
    lambda model, value: model.encode(["a", "b"], precision=value),
    lambda model, value: model.encode(["a"], truncate_dim=value),
    lambda model, value: model.encode(["a"], max_length=value),
    lambda model, value: model.encode(["a"], vertical_chunk_size=value),
    lambda model, value: model.encode(["a"], max_tokens_per_step=value),
    lambda model, value: model.encode(["a"], max_in_flight=value),
    lambda model, value: model.encode(["a"], device=value),
    lambda model, value: list(model.encode_stream(value)),
    lambda model, value: list(model.encode_stream([value])),
    lambda model, value: list(model.encode_stream(["a"], section_size=value)),
    lambda model, value: list(model.encode_stream(["a"], on_error=value)),
    lambda model, value: model.similarity(value, np.ones((1, model.dimension))),
    lambda model, value: model.plan_memory(max_in_flight=value),
    lambda model, value: model.to(value),
    lambda model, value: thalweg.load(value),
    lambda model, value: thalweg.load(device=value),
    lambda model, value: thalweg.load(dtype=value),
    lambda model, value: thalweg.load(quantize=value),
    lambda model, value: thalweg.load(head=value),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "value",
    [None, 5, 512.0, "512", -1, 0, True, b"x", [], [1], {}, {"a": 1}, object(), Path("nowhere"), float("nan"), "gpu"],
    ids=lambda value: "an object" if type(value) is object else repr(value),
)
@pytest.mark.parametrize("call", range(len(CALLS)))
def test_wrong_types_give_errors_of_ours(model: Embedder, call: int, value: Any) -> None:
    """Whatever is passed: it works, or a ThalwegError says why not."""
    with contextlib.suppress(ThalwegError):
        CALLS[call](model, value)


def test_vectors_of_other_widths_are_not_compared(model: Embedder) -> None:
    with pytest.raises(InvalidInputError, match="768 and 384 dimensions cannot be compared"):
        model.similarity(np.ones((2, 768)), np.ones((3, 384)))


def test_it_feels_like_sentence_transformers(model: Embedder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="thalweg"):
        tensor = model.encode(TEXTS, batch_size=8, convert_to_tensor=True, device="cpu")
    assert [record.message for record in caplog.records] == [
        "batch_size=8 has no effect: max_tokens_per_step bounds a step, of any texts"
    ]
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_allclose(tensor.numpy(), model.encode(TEXTS), atol=1e-6)
    assert model.to("cpu") is model
    assert model.device == torch.device("cpu")
    assert model.get_embedding_dimension() == model.dimension


def test_representations_are_one_useful_line(model: Embedder) -> None:
    (result,) = model.encode_stream(["Paris"])
    for shown, part in (
        (repr(model), "mamba2, "),
        (repr(result), "vector=("),
        (repr(model.plan_memory()), "MiB in total"),
        (repr(thalweg.load().embedding_config), "Lexicon("),
    ):
        assert part in shown
        assert "\n" not in shown
        assert len(shown) < 400


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_whose_numbers_overflow_gives_an_error_and_no_vector(tmp_path: Path, value: float) -> None:
    broken = thalweg.load(write_model(tmp_path))
    broken.model.layers[1].norm.weight.data[3] = value
    with pytest.raises(NumericalError, match=r"became inf or NaN in tokens 0 to \d+ of document 0 \(step 0\)"):
        broken.encode(["a text"])
    with pytest.raises(NumericalError):
        list(broken.encode_stream(["a text"], section_size=2))
    with pytest.raises(NumericalError):
        broken.encode_ids(broken.tokenize(["a text"]))
    results = list(broken.encode_stream(["a", "b"], on_error="yield"))
    assert [type(result) for result in results] == [Failure, Failure]
