"""The sections of texts that grow are those of the whole text, whatever the pieces, the pooling and the unit."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors

import thalweg
from tests.corpus.tiny import make_text
from tests.embedder.session_models import TEXT, VARIANTS, assert_same, load, pieces
from tests.embedder.test_sessions import POOLINGS
from tests.ops.harness import with_kernels
from thalweg import InvalidInputError, Sections
from thalweg.embedder.embedder import Embedder
from thalweg.embedder.results import Embedding
from thalweg.embedder.sessions import file

PROSE = "\n\n".join(
    f"{'# ' * (n % 5 == 0)}{make_text(3 + 7 * n % 40, seed=n).capitalize()}. {make_text(4, seed=n)}! 好。 Why? é"
    for n in range(12)
)

UNITS = [
    Sections("tokens", 1),
    Sections("tokens", 7),
    Sections("tokens", 50),
    Sections(),
    Sections("paragraph"),
    Sections("paragraph", 3),
    Sections("sentence"),
    Sections("heading"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sections")


@pytest.fixture(scope="module")
def model(folder: Path) -> Embedder:
    return load(folder / "mamba2")


def in_mode(sections: Sections, mode: Any) -> Sections:
    return Sections(sections.by, sections.every, mode)


def modes(model: Embedder) -> list[str]:
    prefix = [] if model.probe_id is None else ["prefix"]
    return prefix if model.pooling.needs_eos else ["mean", *prefix]


def wanted(model: Embedder, text: str, sections: Sections, **options: Any) -> list[Embedding]:
    by, every, mode = sections.by, sections.every, sections.mode
    return list(model.encode_sections(text, by=by, every=every, mode=mode, **options))


def check(got: Sequence[Embedding], want: Sequence[Embedding], dtype: str = "float32", pooling: str = "mean") -> None:
    def places(sections: Sequence[Embedding]) -> list[tuple[Any, ...]]:
        return [(s.index, s.section, s.n_tokens, s.char_start, s.char_end, s.last, s.truncated) for s in sections]

    assert places(got) == places(want)
    for mine, other in zip(got, want, strict=True):
        assert_same(mine.vector, other.vector, dtype, pooling)


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["bpe", "few", "world"])
@pytest.mark.parametrize("name", POOLINGS)
def test_every_pooling_and_unit(name: str, tokenizer: str, folder: Path, tmp_path: Path) -> None:
    """Taken or left in the session, forked, saved and restored, and on disk between."""
    model = load(folder / f"{name}, {tokenizer}", tokenizer=tokenizer, **POOLINGS[name])
    model.limit_sessions(model.plan_memory().state)
    rng = random.Random(f"{name}, {tokenizer}")
    for unit in rng.sample(UNITS, 2):
        for mode in modes(model):
            sections = in_mode(unit, mode)
            session, taken = model.session(sections=sections), []
            for piece in pieces(PROSE, rng):
                session.append(piece)
                kind = rng.random()
                if kind < 0.1:
                    taken += session.take_sections()
                elif kind < 0.15:
                    session = model.restore(session.save(tmp_path / "session"))
                elif kind < 0.2:
                    session.place.spill()
                elif kind < 0.25:
                    session = session.fork()
            check([*taken, *session.sections()], wanted(model, PROSE, sections))
            assert_same(session.vector(), model.encode(PROSE))


@pytest.mark.slow
@pytest.mark.parametrize("on", [True, False], ids=["kernels", "PyTorch alone"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family(variant: str, dtype: str, on: bool, folder: Path) -> None:
    rng = random.Random(variant)
    with with_kernels(on):
        model = load(folder / variant, variant, dtype=dtype)
        for mode in modes(model):
            sections = Sections("paragraph", None, mode)  # type: ignore[arg-type]
            session = model.session(sections=sections)
            for piece in pieces(PROSE, rng):
                session.append(piece)
            check(session.sections(), wanted(model, PROSE, sections), dtype)


def test_at_any_point_they_are_those_of_the_text_so_far(model: Embedder) -> None:
    """As long as none is taken. The last one changes, and what was taken never does."""
    for unit in UNITS:
        sections = in_mode(unit, "mean")
        session = model.session(sections=sections)
        check(session.sections(), wanted(model, "", sections))
        for at in range(0, 300, 23):
            session.append(PROSE[at : at + 23])
            check(session.sections(), wanted(model, PROSE[: at + 23], sections))
        before = session.sections()
        taken = session.take_sections()
        check(taken, wanted(model, PROSE, sections)[: len(taken)])
        check([*taken, *session.sections()], before)
        assert session.take_sections() == []


def test_a_section_that_ends_where_an_append_stops(folder: Path) -> None:
    """Every token is a section here, so that one does at every call, with end tokens fed to a copy of the state too."""
    for name, options in (
        ("mean", {}),
        ("last", {"pooling": "last"}),
        ("last, 3 EOS", {"pooling": "last", "n_eos": 3}),
    ):
        model = load(folder / f"{name}, bpe", **options)
        for mode in modes(model):
            sections = Sections("tokens", 1, mode)  # type: ignore[arg-type]
            session = model.session(sections=sections)
            for char in PROSE[:200]:
                session.append(char)
            check(session.sections(), wanted(model, PROSE[:200], sections))


def test_settings_and_prompts(model: Embedder) -> None:
    options: dict[str, Any] = {"prompt": "note: ", "normalize_embeddings": False, "truncate_dim": 3}
    session = model.session(sections=Sections("sentence"), **options)
    session.append(PROSE)
    check(session.sections(), wanted(model, PROSE, Sections("sentence"), **options))
    assert session.sections()[0].vector.shape == (3,)


def test_many_together(model: Embedder) -> None:
    texts = [PROSE[n * 20 :] for n in range(30)]
    sessions = [model.session(sections=Sections("sentence")) for _ in texts]
    for at in range(0, len(PROSE), 100):
        model.append_many((session, text[at : at + 100]) for session, text in zip(sessions, texts, strict=True))
    for session, text in zip(sessions, texts, strict=True):
        check(session.sections(), wanted(model, text, Sections("sentence")))


def test_forks_part(model: Embedder) -> None:
    session = model.session(sections=Sections("paragraph"))
    session.append(PROSE[:200])
    fork = session.fork()
    fork.append("别的\n\nother")
    session.append(PROSE[200:])
    check(fork.sections(), wanted(model, PROSE[:200] + "别的\n\nother", Sections("paragraph")))
    check(session.sections(), wanted(model, PROSE, Sections("paragraph")))


def test_what_fails_leaves_the_sections_as_they_were(model: Embedder) -> None:
    session = model.session(sections=Sections("paragraph"))
    session.append(PROSE)
    before = session.sections()
    with pytest.raises(thalweg.TokenizationError):
        session.append(f"{PROSE}\n\nmore \ud800".encode("utf-8", "surrogatepass"))
    check(session.sections(), before)


def test_memory_does_not_grow(model: Embedder) -> None:
    """But for the sections that nobody takes."""
    session = model.session(sections=Sections("tokens", 20))
    session.append(TEXT)
    session.take_sections()
    nbytes = session.nbytes
    for _ in range(20):
        session.append(TEXT)
        assert session.take_sections()
        assert session.nbytes == nbytes
    assert nbytes <= 1.5 * model.plan_memory().state


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (Sections("paragraph", mode="isolated"), "isolated"),
        (Sections("paragraph", look_ahead=3), "look_ahead=3 is not possible"),
        (Sections([3, 5]), "a session's text grows"),
        (Sections(lambda text: [3]), "a session's text grows"),
        ("paragraph", "thalweg.Sections"),
        (512, "thalweg.Sections"),
    ],
)
def test_sections_that_a_growing_text_cannot_have(sections: Any, message: str, model: Embedder) -> None:
    with pytest.raises(InvalidInputError, match=message):
        model.session(sections=sections)


def test_modes_that_a_model_cannot_give(folder: Path) -> None:
    with pytest.raises(InvalidInputError, match="need mean pooling"):
        load(folder / "last, bpe", pooling="last").session(sections=Sections(mode="mean"))
    with pytest.raises(InvalidInputError, match="need an EOS"):
        load(folder / "mean, world", tokenizer="world").session(sections=Sections(mode="prefix"))


def test_a_session_without_sections_says_so(model: Embedder) -> None:
    for ask in (model.session().sections, model.session().take_sections):
        with pytest.raises(InvalidInputError, match=r"session\(sections=thalweg.Sections"):
            ask()


def test_a_file_without_sections_is_still_of_the_first_version(model: Embedder, tmp_path: Path) -> None:
    """So that an earlier release reads it."""
    for sections, version in ((None, "1"), (Sections(), "2")):
        path = model.session(sections=sections).save(tmp_path / "session")
        with safetensors.safe_open(path, "np") as opened:
            assert opened.metadata()["version"] == version


def test_more_sections_than_a_file_may_have(model: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = model.session(sections=Sections("tokens", 5))
    session.append(TEXT)
    monkeypatch.setattr(file, "MOST_KEPT", 100)
    with pytest.raises(InvalidInputError, match=r"take_sections\(\) before"):
        session.save(tmp_path / "session")
    assert not (tmp_path / "session").exists()
    session.take_sections()
    session.save(tmp_path / "session")
