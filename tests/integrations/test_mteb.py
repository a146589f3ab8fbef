"""mteb.evaluate with thalweg's models: the same vectors, the right prompts, nothing lost on the way."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import thalweg
from thalweg.errors import CheckpointError, InvalidInputError

from ..corpus.tiny import make_text, write_model

pytest.importorskip("mteb")
pytest.importorskip("sentence_transformers")  # mteb.evaluate imports it

import mteb
from datasets import Dataset
from mteb._create_dataloaders import create_dataloader
from mteb.types import PromptType

from thalweg.integrations.mteb import ThalwegEncoder
from thalweg.integrations.mteb_instructions import Instructions, paper_instructions

from ..evaluation.by_hand import Pairs, Topics, hand_written_tasks

TASKS = {task.metadata.type: task for task in hand_written_tasks({})}
PLACE: dict[str, Any] = {"hf_split": "test", "hf_subset": "default"}

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> thalweg.Embedder:
    prompts = {"query": "question: ", "passage": "passage: ", "STS": "sts: ", "HandTopics": "topic: "}
    return thalweg.load(write_model(tmp_path_factory.mktemp("model") / "tiny", prompts=prompts))


@pytest.fixture(scope="module")
def encoder(embedder: thalweg.Embedder) -> ThalwegEncoder:
    return ThalwegEncoder(embedder)


def loader(texts: list[str], batch_size: int = 2) -> Any:
    dataset = Dataset.from_dict({"text": texts})
    return create_dataloader(dataset, task_metadata=Pairs.metadata, batch_size=batch_size)


def encode(encoder: ThalwegEncoder, texts: list[str], task: Any = None, **kwargs: Any) -> Any:
    metadata = (task or TASKS["Clustering"]).metadata
    return encoder.encode(loader(texts), task_metadata=metadata, **PLACE, **{"show_progress_bar": False, **kwargs})


TEXTS = ["", "a swan", make_text(40_000), "the river", make_text(300, 1), "a"]


@pytest.mark.slow
def test_vectors_are_those_of_the_embedder(encoder: ThalwegEncoder, embedder: thalweg.Embedder) -> None:
    """Short, mixed, empty, and one of more than 50,000 tokens."""
    assert len(embedder.tokenizer.encode_batch([TEXTS[2]])[0]) > 50_000
    expected = embedder.encode(TEXTS)
    for options in ({}, {"vertical_chunk_size": 77}, {"vertical_chunk_size": 512, "max_tokens_per_step": 600}):
        vectors = encode(encoder, TEXTS, **options)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


@pytest.mark.parametrize("options", [{"truncate_dim": 8}, {"normalize_embeddings": False}, {"precision": "int8"}])
def test_options_of_encode_are_passed_on(encoder: ThalwegEncoder, embedder: thalweg.Embedder, options: Any) -> None:
    texts = TEXTS[3:]
    np.testing.assert_allclose(encode(encoder, texts, **options), embedder.encode(texts, **options), atol=1e-5)


def test_texts_are_read_as_they_are_needed(encoder: ThalwegEncoder) -> None:
    texts = [f"{i} swans" for i in range(300)]
    read = 0

    class Watched(list):  # type: ignore[type-arg]
        dataset = texts

        def __iter__(self) -> Any:
            nonlocal read
            for text in texts:
                read += 1
                yield {"text": [text]}

    seen: list[int] = []
    stream = encoder.model.encode_stream

    def watch(*args: Any, **kwargs: Any) -> Any:
        for result in stream(*args, **kwargs):
            seen.append(read)
            yield result

    encoder.model.encode_stream = watch  # type: ignore[method-assign]
    try:
        encoder.encode(
            Watched(), task_metadata=Pairs.metadata, **PLACE, show_progress_bar=False, max_tokens_per_step=64
        )  # type: ignore[arg-type]
    finally:
        del encoder.model.encode_stream  # type: ignore[method-assign]
    assert seen[0] < 200 < seen[-1] == 300


def test_a_cut_is_counted(embedder: thalweg.Embedder, caplog: pytest.LogCaptureFixture) -> None:
    cutting = ThalwegEncoder(embedder, max_length=5)
    with caplog.at_level(logging.WARNING, logger="thalweg"):
        vectors = encode(cutting, TEXTS[3:])
    np.testing.assert_allclose(vectors, embedder.encode(TEXTS[3:], max_length=5), atol=1e-5)
    assert "max_length=5 cut 1 of 3 texts" in caplog.text
    meta = cutting.mteb_model_meta
    assert meta.max_tokens == 5
    assert meta.experiment_name == "max_length_5", "results of a cut model are not those of the whole one"


@pytest.mark.parametrize("wrong", [{"vertical_chunk": 7}, {"chunk_size": 3}])
def test_an_unknown_option_is_an_error(encoder: ThalwegEncoder, wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"no option '{next(iter(wrong))}'.*vertical_chunk_size"):
        encode(encoder, ["a"], **wrong)


@pytest.mark.parametrize(
    ("task", "prompt_type", "prompt"),
    [
        ("Retrieval", PromptType.query, "question: "),
        ("Retrieval", PromptType.document, "passage: "),
        ("STS", None, "sts: "),
        ("Classification", None, "topic: "),
        ("Clustering", None, ""),
    ],
)
def test_the_models_prompts_go_by_task_type_and_side(
    encoder: ThalwegEncoder, embedder: thalweg.Embedder, task: str, prompt_type: PromptType | None, prompt: str
) -> None:
    vectors = encode(encoder, TEXTS[3:], TASKS[task], prompt_type=prompt_type)
    np.testing.assert_allclose(vectors, embedder.encode(TEXTS[3:], prompt=prompt), atol=1e-5)


def test_given_prompts_replace_those_of_the_model(embedder: thalweg.Embedder) -> None:
    given = ThalwegEncoder(embedder, model_prompts={"Retrieval-query": "R: ", "query": "Q: "})
    assert given.prompt_of(TASKS["Retrieval"].metadata, PromptType.query) == "R: "
    assert given.prompt_of(TASKS["STS"].metadata) == ""
    assert given.mteb_model_meta.experiment_name != ThalwegEncoder(embedder).mteb_model_meta.experiment_name


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("ArguAna", "Given a claim, find documents that refute the claim"),
        ("STS12", "Retrieve semantically similar text."),
        ("BiorxivClusteringP2P.v2", "Identify the main category of Biorxiv papers based on the titles and abstracts"),
        (
            "ClimateFEVERHardNegatives",
            "Given a claim about climate change, retrieve documents that support or refute the claim",
        ),
        (
            "Touche2020Retrieval.v3",
            "Given a question, retrieve detailed and persuasive arguments that answer the question",
        ),
        (
            "CQADupstackUnixRetrieval",
            "Given a question, retrieve detailed question descriptions from Stackexchange that are duplicates to the "
            "given question",
        ),
        ("LEMBNeedleRetrieval", "Given a web search query, retrieve relevant passages that answer the query"),
        ("HALClusteringS2S.v2", "Identify categories in user passages."),  # mteb's words for a kind of task
        ("TwitterHjerneRetrieval", "Retrieve answers to questions asked in Danish tweets"),  # mteb's for a task
    ],
)
def test_the_papers_instructions(name: str, instruction: str) -> None:
    task = mteb.get_task(name).metadata
    instructions = paper_instructions()
    assert instructions.prompt(task, PromptType.query) == f"Instruct: {instruction}\nQuery: "
    assert instructions.prompt(task, PromptType.document) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MTEB(eng, v2)", "MTEB(Multilingual, v2)", "LongEmbed"])
def test_every_task_of_the_papers_benchmarks_has_an_instruction(name: str) -> None:
    instructions = paper_instructions()
    without = [
        task.metadata.name
        for task in mteb.get_benchmark(name).tasks
        if not instructions.instruction(task.metadata, PromptType.query)
    ]
    assert without == []


def test_instructions_come_before_queries_only(embedder: thalweg.Embedder) -> None:
    own = Instructions({"HandNotes": "Find notes"}, {}, "Do: {instruction}. ")
    told = ThalwegEncoder(embedder, instructions=own)
    task = TASKS["Retrieval"]
    queries = encode(told, TEXTS[3:], task, prompt_type=PromptType.query)
    np.testing.assert_allclose(queries, embedder.encode(TEXTS[3:], prompt="Do: Find notes. "), atol=1e-5)
    documents = encode(told, TEXTS[3:], task, prompt_type=PromptType.document)
    np.testing.assert_allclose(documents, embedder.encode(TEXTS[3:]), atol=1e-5)
    assert told.prompt_of(Topics.metadata) == "topic: ", "the model's prompt for this very task counts more"


def test_instructions_of_an_unknown_name_are_refused(embedder: thalweg.Embedder) -> None:
    with pytest.raises(InvalidInputError, match="'e5'"):
        ThalwegEncoder(embedder, instructions="e5")  # type: ignore[arg-type]


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity_is_the_models_own(tmp_path: Path, similarity: str) -> None:
    folder = write_model(tmp_path / "model", normalize=False)
    settings = folder / "config_sentence_transformers.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "similarity_fn_name": similarity}))
    encoder = ThalwegEncoder(folder)
    assert encoder.mteb_model_meta.similarity_fn_name.value == similarity
    a, b = (np.random.default_rng(seed).normal(size=(130, 32)).astype(np.float32) for seed in (1, 2))
    whole = encoder.similarity(torch.from_numpy(a), b)
    np.testing.assert_allclose(whole, encoder.model.similarity(a, b), atol=1e-5)
    np.testing.assert_allclose(encoder.similarity_pairwise(a, torch.from_numpy(b)), whole.diagonal(), atol=1e-5)


def test_the_meta_says_what_is_known(encoder: ThalwegEncoder, embedder: thalweg.Embedder) -> None:
    meta = encoder.mteb_model_meta
    assert meta.name == "thalweg/tiny"
    assert meta.revision == embedder.fingerprint
    assert meta.n_parameters == sum(p.numel() for p in embedder.model.parameters())
    assert (meta.embed_dim, meta.max_tokens, meta.license, meta.framework) == (32, float("inf"), None, ["PyTorch"])
    assert 0 < (meta.n_embedding_parameters or 0) < meta.n_parameters
    json.dumps(meta.to_dict(), default=str)


def test_the_meta_loads_the_model_again(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    first = ThalwegEncoder(folder, max_length=9, instructions="paper")
    again = first.mteb_model_meta.load_model()
    np.testing.assert_array_equal(encode(again, TEXTS[3:]), encode(first, TEXTS[3:]))  # type: ignore[arg-type]
    write_model(tmp_path / "other", seed=1)
    (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="fingerprint"):
        first.mteb_model_meta.load_model()


@pytest.mark.slow
def test_mteb_evaluates_tasks_of_four_kinds(encoder: ThalwegEncoder, tmp_path: Path) -> None:
    """The vertical chunk changes no score, and a second run finds the results of the first."""
    cache = mteb.ResultCache(tmp_path)
    scores = []
    for chunk in (8, 1024):
        results = mteb.evaluate(
            encoder,
            hand_written_tasks({}),
            encode_kwargs={"vertical_chunk_size": chunk, "show_progress_bar": False},
            cache=cache if chunk == 8 else None,
            co2_tracker=False,
            show_progress_bar=False,
        )
        scores.append({result.task_name: result.get_score() for result in results.task_results})
    assert len(scores[0]) == 4
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    stored = mteb.evaluate(encoder, hand_written_tasks({}), cache=cache, overwrite_strategy="only-cache")
    assert {result.task_name: result.get_score() for result in stored.task_results} == pytest.approx(scores[0])


@pytest.mark.subprocess
def test_without_mteb_the_pip_command_is_told() -> None:
    import subprocess
    import sys

    code = "import sys; sys.modules['mteb'] = None\nimport thalweg.integrations.mteb"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtraError" in done.stderr
    assert "pip install 'thalweg[mteb]'" in done.stderr
