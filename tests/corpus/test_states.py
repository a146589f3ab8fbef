"""Long documents go on from the state that a broken-off run has saved."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import thalweg
from thalweg import Sections
from thalweg.corpus import Status, Summary
from thalweg.errors import CorpusError
from thalweg.storage.durable import write_durably

from .corpora import assert_same_output, run
from .tiny import make_text, write_model

EVERY = 300
SCHEDULE = {"vertical_chunk_size": 64, "max_tokens_per_step": 256}


class Crash(Exception):
    """Stands for the end of the process."""


def write_long(root: Path) -> Path:
    """Long files, one with characters of several bytes only, a long row, and short documents beside them."""
    root.mkdir()
    (root / "a.txt").write_text(make_text(1500, 1))
    (root / "b.txt").write_text("naïve façade 🦢 „Fluß“ 中文字 " * 300)
    (root / "c.txt").write_text(make_text(900, 2))
    (root / "d.csv").write_text("text\n" + f'"{make_text(2500, 3)}"\n' + "short\n")
    (root / "e.txt").write_text("short")
    return root


@pytest.fixture(scope="module")
def long_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_long(tmp_path_factory.mktemp("long") / "docs")


def states(out: Path) -> list[Path]:
    return sorted(out.with_name(f"{out.name}.parts").glob("state-*"))


def crash_at(tokens: int, seen: list[int]) -> Any:
    """An `on_status` that breaks the run off after so many tokens."""

    def follow(status: Status) -> None:
        seen[:] = [status.tokens]
        if status.tokens >= tokens:
            raise Crash

    return follow


def broken_off_often(
    embedder: thalweg.Embedder, root: Path, out: Path, tokens: int, **settings: Any
) -> tuple[Summary, int, int]:
    """The last run's summary, how often it was broken off, and the tokens of all."""
    total = crashes = 0
    mode: Any = "new"
    while True:
        seen = [0]
        embedder.limit_prefixes(256 << 20)  # as in a process of its own
        try:
            summary = run(embedder, root, out, mode, on_status=crash_at(tokens, seen), save_every=0, **settings)
        except Crash:
            crashes += 1
            total += seen[0]
            mode = "resume"
            assert crashes < 100, "it goes on"
            continue
        return summary, crashes, total + summary.new_tokens


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{}, {"max_length": 1000}, {"share_prefixes": True}, {"prompt": "a text that is put before " * 9}],
    ids=str,
)
@pytest.mark.parametrize("kind", ["mean", "last"])
def test_a_run_broken_off_often_equals_an_undisturbed_one(
    kind: Any, settings: dict[str, Any], long_files: Path, tmp_path: Path
) -> None:
    embedder = thalweg.load(write_model(tmp_path / "model", pooling=kind), device="cpu")
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    settings = {**settings, "schedule": SCHEDULE}
    undisturbed = run(embedder, long_files, whole, state_every=0, **settings)
    summary, crashes, tokens = broken_off_often(embedder, long_files, out, 1800, state_every=EVERY, **settings)
    assert crashes >= 2
    assert_same_output(whole, out)
    # Four documents are under way at most, and each repeats less than EVERY tokens, and the step that was not told.
    assert tokens <= undisturbed.new_tokens + crashes * (4 * EVERY + 256)
    assert summary.documents == undisturbed.documents
    assert not list(tmp_path.glob("*.parts"))


PROSE = "\n\n".join(f"{make_text(5 + n % 30, n)}. {make_text(3, n)}! {make_text(4, n)}" for n in range(80))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "sections"),
    [
        ("mean", Sections("tokens", 64)),
        ("last", Sections("tokens", EVERY)),
        ("mean", Sections("tokens", 1000, "prefix")),
        ("mean", Sections("paragraph")),
        ("last", Sections("sentence", 2, "prefix")),
        ("mean", Sections("heading")),
        ("last", Sections("paragraph", 2, "mean")),
    ],
    ids=str,
)
def test_sections_of_a_run_broken_off_often(kind: Any, sections: Sections, long_files: Path, tmp_path: Path) -> None:
    """None is missing, none is there twice, none is made of another text, and all have their texts."""
    embedder = thalweg.load(write_model(tmp_path / "model", pooling=kind), device="cpu")
    root = tmp_path / "docs"
    shutil.copytree(long_files, root)
    (root / "prose.md").write_text(PROSE)
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    settings = {"schedule": SCHEDULE, "sections": sections}
    undisturbed = run(embedder, root, whole, state_every=0, **settings)
    summary, crashes, tokens = broken_off_often(embedder, root, out, 4000, state_every=EVERY, **settings)
    assert crashes >= 2
    assert_same_output(whole, out)
    # As above, and the end tokens that are fed to copies of the state where sections end.
    probes = summary.new_tokens if sections.mode == "prefix" or kind == "last" else 0
    assert tokens <= undisturbed.new_tokens + crashes * (6 * EVERY + 256) + probes
    assert any("goes on from its saved state after" in note for note in summary.notes)


def test_sections_that_were_lost_with_a_part_are_made_again(embedder: thalweg.Embedder, tmp_path: Path) -> None:
    """A state is of no use without the rows before it."""
    path, out, whole = tmp_path / "long.txt", tmp_path / "out.parquet", tmp_path / "whole.parquet"
    path.write_text(make_text(2000, 6))
    run(embedder, path, whole, section_size=50)
    broken_off(embedder, path, out, section_size=50, save_every=0)
    parts = sorted(states(out)[0].parent.glob("part-*"))
    parts[1].write_bytes(parts[1].read_bytes()[:-1])
    summary = run(embedder, path, out, "resume", schedule=SCHEDULE, state_every=EVERY, section_size=50)
    assert any("sections before it are missing" in note for note in summary.notes)
    assert_same_output(whole, out)


def test_one_document_repeats_at_most_the_tokens_between_two_states(embedder: thalweg.Embedder, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(make_text(4000, 5))
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    undisturbed = run(embedder, tmp_path / "long.txt", whole, schedule=SCHEDULE)
    done, mode = 0, "new"
    for stop in (50, 450, 900, 901, 1):
        seen = [0]
        with pytest.raises(Crash):
            run(
                embedder,
                tmp_path / "long.txt",
                out,
                mode,  # type: ignore[arg-type]
                on_status=crash_at(stop, seen),
                schedule=SCHEDULE,
                state_every=EVERY,
            )
        done = (done + seen[0]) // EVERY * EVERY
        assert len(states(out)) == (done > 0)
        mode = "resume" if done else "new"
    summary = run(embedder, tmp_path / "long.txt", out, "resume", schedule=SCHEDULE, state_every=EVERY)
    assert summary.new_tokens == undisturbed.new_tokens - done
    assert summary.notes == (f"{tmp_path}/long.txt: goes on from its saved state after {done:,} tokens",)
    assert_same_output(whole, out)


def broken_off(embedder: thalweg.Embedder, path: Path, out: Path, tokens: int = 1500, **settings: Any) -> None:
    settings = {"schedule": SCHEDULE, "state_every": EVERY, **settings}
    with pytest.raises(Crash):
        run(embedder, path, out, on_status=crash_at(tokens, []), **settings)


def test_a_state_that_cannot_be_used_is_told_and_the_document_begins_anew(
    embedder: thalweg.Embedder, tmp_path: Path
) -> None:
    path, out, whole = tmp_path / "long.txt", tmp_path / "out.parquet", tmp_path / "whole.parquet"
    path.write_text(make_text(2000, 6))
    (tmp_path / "other.txt").write_text(make_text(2000, 7))
    undisturbed = run(embedder, path, whole)
    broken_off(embedder, tmp_path / "other.txt", tmp_path / "other.parquet")
    foreign = states(tmp_path / "other.parquet")[0].read_bytes()
    for change, told in (
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "its checksum is another one"),
        (lambda data: data[:100], "no saved session"),
        (lambda data: b"", "no saved session"),
        (lambda data: foreign, "its run is"),
    ):
        broken_off(embedder, path, out)
        (state,) = states(out)
        state.write_bytes(change(state.read_bytes()))
        summary = run(embedder, path, out, "resume", schedule=SCHEDULE, state_every=EVERY)
        assert "long.txt: run from its start, as its saved state cannot be used (" in summary.notes[0]
        assert told in summary.notes[0]
        assert summary.new_tokens == undisturbed.new_tokens
        assert_same_output(whole, out)
        out.unlink()


@pytest.mark.parametrize("keep_time", [True, False])
def test_a_text_that_has_changed_is_noticed(keep_time: bool, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    path, out = tmp_path / "long.txt", tmp_path / "out.parquet"
    text = make_text(2000, 8)
    path.write_text(text)
    before = path.stat()
    broken_off(embedder, path, out)
    path.write_text("X" + text[1:])
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    told = "text has changed since its state was saved; start over" if keep_time else "long.txt has changed"
    for _ in range(2):
        with pytest.raises(CorpusError, match=told):
            run(embedder, path, out, "resume", schedule=SCHEDULE, state_every=EVERY)
    run(embedder, path, out, "overwrite", schedule=SCHEDULE, state_every=EVERY)
    run(embedder, path, tmp_path / "whole.parquet")
    assert_same_output(out, tmp_path / "whole.parquet")


def test_a_file_that_fails_later_leaves_no_state(embedder: thalweg.Embedder, tmp_path: Path) -> None:
    root, out = tmp_path / "docs", tmp_path / "out.parquet"
    root.mkdir()
    (root / "bad.txt").write_bytes(make_text(30_000, 9).encode() + b"\xff")
    (root / "good.txt").write_text(make_text(300, 9))
    left: list[list[str]] = []

    def look(status: Status) -> None:
        left.append([path.name for path in states(out)])

    summary = run(embedder, root, out, on_status=look, schedule=SCHEDULE, state_every=EVERY)
    assert summary.failed == 1
    assert any(any("state-0-0" in name for name in names) for names in left)
    assert any(not any("state-0-0" in name for name in names) for names in left[-5:])


def test_states_are_dropped_by_overwriting_and_not_made_of_isolated_sections_or_on_demand(
    embedder: thalweg.Embedder, tmp_path: Path
) -> None:
    path, out = tmp_path / "long.txt", tmp_path / "out.parquet"
    path.write_text(make_text(2000, 10))
    broken_off(embedder, path, out)
    assert states(out)
    with pytest.raises(CorpusError, match="unfinished run"):
        run(embedder, path, out)
    n = run(embedder, path, out, "overwrite", schedule=SCHEDULE).new_tokens
    assert n == run(embedder, path, tmp_path / "whole.parquet").new_tokens
    broken_off(embedder, path, tmp_path / "never.parquet", state_every=0)
    broken_off(embedder, path, tmp_path / "cut.parquet", sections=Sections(mode="isolated", every=64), save_every=0)
    assert not states(tmp_path / "never.parquet")
    assert not states(tmp_path / "cut.parquet")
    with pytest.raises(thalweg.InvalidInputError, match="state_every"):
        run(embedder, path, out, "overwrite", state_every=-1)


def test_the_state_of_a_finished_document_goes_with_its_row(embedder: thalweg.Embedder, tmp_path: Path) -> None:
    """What a crash leaves between the two is dropped too."""
    root, out = tmp_path / "docs", tmp_path / "out.parquet"
    root.mkdir()
    (root / "a.txt").write_text(make_text(700, 11))
    (root / "b.txt").write_text(make_text(6000, 12))
    stale: list[bytes] = []

    def follow(status: Status) -> None:
        found = [path for path in states(out) if path.name == "state-0-0.safetensors"]
        stale.extend(path.read_bytes() for path in found)
        if status.documents and status.tokens > 5000:
            raise Crash

    with pytest.raises(Crash):
        run(embedder, root, out, on_status=follow, schedule=SCHEDULE, state_every=EVERY, save_every=0)
    assert stale
    assert [path.name for path in states(out)] == ["state-1-0.safetensors"]
    states(out)[0].with_name("state-0-0.safetensors").write_bytes(stale[-1])
    summary = run(embedder, root, out, "resume", schedule=SCHEDULE, state_every=EVERY)
    assert summary.saved == 1
    assert len(summary.notes) == 1
    run(embedder, root, tmp_path / "whole.parquet")
    assert_same_output(out, tmp_path / "whole.parquet")


def test_the_lexicon_of_a_text_goes_on_too(tmp_path: Path) -> None:
    path, out, whole = tmp_path / "long.txt", tmp_path / "out.parquet", tmp_path / "whole.parquet"
    path.write_text(make_text(2000, 13))
    embedder = thalweg.load(device="cpu")
    assert embedder.embedding_config.lexicon is not None
    run(embedder, path, whole)
    _, crashes, _ = broken_off_often(embedder, path, out, 700, schedule=SCHEDULE, state_every=EVERY)
    assert crashes
    assert_same_output(out, whole)


def test_a_disk_without_room_for_a_state_is_named(
    embedder: thalweg.Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, whole = tmp_path / "long.txt", tmp_path / "out.parquet", tmp_path / "whole.parquet"
    path.write_text(make_text(2000, 14))
    n = run(embedder, path, whole).new_tokens
    room = [2]

    def write(target: Path, fill: Any) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        write_durably(target, fill)

    settings: dict[str, Any] = {"schedule": SCHEDULE, "state_every": EVERY}
    with monkeypatch.context() as patch:
        patch.setattr("thalweg.corpus.states.write_durably", write)
        told = "No space left on device; the states of long documents are saved in .*: make room, then go on"
        with pytest.raises(CorpusError, match=told):
            run(embedder, path, out, **settings)
    settings["state_every"] = 450  # may be another one
    assert run(embedder, path, out, "resume", **settings).new_tokens == n - 2 * EVERY
    assert_same_output(out, whole)
