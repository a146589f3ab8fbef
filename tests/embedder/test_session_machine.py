"""Anything done with sessions in any order: every one is the text that it was given."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

import thalweg
from tests.embedder.session_models import assert_same, load, n_tokens
from tests.examples import PROFILE
from thalweg import Sections
from thalweg.embedder.embedder import Embedder
from thalweg.embedder.sessions.session import Session

PIECES = st.one_of(
    st.text(st.sampled_from("ab é中🙂1 \n"), max_size=12),
    st.sampled_from(
        ["the river runs ", "down to the sea. ", "<|endo", "ftext|>", " " * 40, "0123456789" * 8, "中文" * 30]
    ),
    st.integers(1, 40).map(lambda n: "boats drift slowly past grey stones\n" * n),
)


class Growing:
    """A session, and what it has been given: bytes, as it may end inside a character."""

    def __init__(self, session: Session, given: bytes = b"") -> None:
        self.session, self.given = session, given

    @property
    def is_text(self) -> bool:
        try:
            self.given.decode()
        except UnicodeDecodeError:
            return False
        return True


class Sessions(RuleBasedStateMachine):
    """Sessions of one model; what is in memory is counted all the time."""

    root: Path
    models: ClassVar[dict[tuple[str, str], Embedder]] = {}
    sessions = Bundle("sessions")
    files = Bundle("files")

    @initialize(pooling=st.sampled_from(["mean", "last", "lexicon"]), tokenizer=st.sampled_from(["bpe", "world"]))
    def begin(self, pooling: str, tokenizer: str) -> None:
        if (pooling, tokenizer) not in self.models:
            folder = self.root / f"{pooling} {tokenizer}"
            self.models[pooling, tokenizer] = load(folder, pooling=pooling, tokenizer=tokenizer)
        self.model = self.models[pooling, tokenizer]
        self.model.limit_sessions(None)
        self.folder = Path(tempfile.mkdtemp(dir=self.root))
        self.live: list[Growing] = []
        self.n_files = 0
        self.limit: int | None = None

    def _new(self, session: Session, given: bytes) -> Growing:
        self.live.append(Growing(session, given))
        return self.live[-1]

    @rule(target=sessions, sections=st.sampled_from([None, None, Sections("tokens", 3), Sections("sentence")]))
    def new(self, sections: Sections | None) -> Growing:
        if sections is not None and sections.in_tokens().with_mode(self.model.pooling).are_probed(self.model.pooling):
            sections = None if self.model.probe_id is None else sections
        return self._new(self.model.session(sections=sections), b"")

    @rule(one=sessions, text=PIECES)
    def append(self, one: Growing, text: str) -> None:
        if one.is_text:
            one.session.append(text)
            one.given += text.encode()
        else:
            with pytest.raises(thalweg.TokenizationError):
                one.session.append(text)

    @rule(one=sessions, text=PIECES, cut=st.integers(0, 50))
    def append_bytes(self, one: Growing, text: str, cut: int) -> None:
        raw = text.encode()
        if not one.is_text:  # end the character first
            whole = next(c.encode() for c in "é中🙂文" if c.encode().startswith(_half(one.given)))
            rest = whole[len(_half(one.given)) :]
            one.session.append(rest)
            one.given += rest
        one.session.append(raw[:cut])
        one.given += raw[:cut]

    @rule(one=sessions, bad=st.sampled_from([b"fine \xff", "fine \ud800", b"\xe4\xb8 ", 3]))
    def append_bad(self, one: Growing, bad: Any) -> None:
        with pytest.raises(thalweg.ThalwegError):
            one.session.append(bad)

    @rule(some=st.lists(st.tuples(sessions, PIECES), min_size=1, max_size=6))
    def append_many(self, some: list[tuple[Growing, str]]) -> None:
        pairs = [(one, text) for one, text in some if one.is_text]
        self.model.append_many([(one.session, text) for one, text in pairs])
        for one, text in pairs:
            one.given += text.encode()

    @rule(one=sessions)
    def vector(self, one: Growing) -> None:
        if not one.is_text:
            with pytest.raises(thalweg.TokenizationError):
                one.session.vector()
            return
        text = one.given.decode()
        if not n_tokens(self.model, text):  # nothing stands for it: this model has no EOS
            with pytest.raises(thalweg.InvalidInputError, match="no tokens"):
                one.session.vector()
            assert one.session.tokens == 0
            return
        assert_same(one.session.vector(), self.model.encode(text))
        assert one.session.tokens == n_tokens(self.model, text)

    @rule(one=sessions)
    def sections_of(self, one: Growing) -> None:
        sections = one.session.settings.sections
        if sections is None or not one.is_text or not n_tokens(self.model, one.given.decode()):
            return
        want = list(self.model.encode_sections(one.given.decode(), by=sections.by, every=sections.every))
        got = one.session.sections()
        assert [(s.n_tokens, s.char_start, s.char_end) for s in got] == [
            (s.n_tokens, s.char_start, s.char_end) for s in want
        ]
        assert_same(np.stack([s.vector for s in got]), np.stack([s.vector for s in want]))

    @rule(some=st.lists(sessions, min_size=1, max_size=6))
    def vectors(self, some: list[Growing]) -> None:
        some = [one for one in some if one.is_text and n_tokens(self.model, one.given.decode())]
        got = self.model.session_vectors([one.session for one in some])
        assert_same(got, self.model.encode([one.given.decode() for one in some]))

    @rule(target=sessions, one=sessions)
    def fork(self, one: Growing) -> Growing:
        return self._new(one.session.fork(), one.given)

    @rule(target=files, one=sessions)
    def save(self, one: Growing) -> tuple[Path, bytes]:
        self.n_files += 1
        return one.session.save(self.folder / f"{self.n_files}.session"), one.given

    @rule(target=sessions, file=files)
    def restore(self, file: tuple[Path, bytes]) -> Growing:
        path, given = file
        return self._new(self.model.restore(path), given)

    @rule(one=sessions)
    def spill(self, one: Growing) -> None:
        assert one.session.place.spill()
        assert not one.session.place.in_memory

    @rule(states=st.none() | st.integers(0, 5))
    def limit_sessions(self, states: int | None) -> None:
        self.limit = None if states is None else states * self.model.plan_memory().state
        self.model.limit_sessions(self.limit)

    @rule(one=consumes(sessions))
    def drop(self, one: Growing) -> None:
        self.live.remove(one)

    @invariant()
    def is_counted(self) -> None:
        if not hasattr(self, "live"):
            return
        memory = self.model._session_memory
        held = sum(one.session.nbytes for one in self.live if one.session.place.in_memory)
        assert self.limit is None or held <= self.limit
        assert memory.nbytes >= held

    def teardown(self) -> None:
        for one in getattr(self, "live", []):
            self.vector(one)


def _half(given: bytes) -> bytes:
    """The bytes at the end that are no whole character."""
    return next(given[-n:] for n in (1, 2, 3) if given[-n] >= 0xC0)


@pytest.mark.slow
def test_anything_in_any_order(tmp_path_factory: pytest.TempPathFactory) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    Sessions.root = tmp_path_factory.mktemp("machine")
    checks = settings(
        max_examples=3 if PROFILE == "quick" else 1000,
        stateful_step_count=12,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Sessions, settings=checks)
