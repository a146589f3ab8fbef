"""Sessions on disk: the same in another process and in later versions, and nothing else is ever taken for one."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import thalweg
from tests.corpus.tiny import make_text
from tests.edits import edit_json
from tests.embedder.session_models import TEXT, VARIANTS, assert_same, load
from tests.embedder.test_session_sections import PROSE
from tests.ops.harness import with_kernels
from tests.pooling.test_lexicon import make_lexicon
from thalweg import InvalidInputError, Sections, ThalwegError
from thalweg.embedder.embedder import Embedder
from thalweg.embedder.sessions import file
from thalweg.embedder.sessions.session import Session

GOLDEN = Path(__file__).parent.parent / "golden" / "sessions"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def model(folder: Path) -> Embedder:
    return load(folder / "mamba2")


def grown(model: Embedder, text: str = TEXT, **options: Any) -> Session:
    session = model.session(**options)
    session.append(text)
    return session


CONTINUE = """
import sys, numpy as np, thalweg
dtype, *folders = sys.argv[1:]
more = sys.stdin.buffer.read()
for folder in folders:
    model = thalweg.load(folder, device="cpu", dtype=dtype)
    session = model.restore(folder + ".session")
    first, tokens = session.vector(), session.tokens
    session.append(more)
    session.save(folder + ".continued")
    np.savez(folder + ".npz", first=first, tokens=tokens, second=session.vector())
"""


@pytest.mark.subprocess
@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_another_process_goes_on(kernels: str, tmp_path: Path) -> None:
    """With sessions of every family."""
    half, rest = TEXT.encode()[:701], TEXT.encode()[701:]
    dtype = "float32" if kernels == "auto" else "bfloat16"
    with with_kernels(kernels == "auto"):
        models = [load(tmp_path / variant, variant, dtype=dtype) for variant in VARIANTS]
        sessions = [model.session() for model in models]
        for model, session in zip(models, sessions, strict=True):
            for piece in (half[:5], half[5:]):
                session.append(piece)
            session.save(f"{model.folder}.session")
        subprocess.run(
            [sys.executable, "-c", CONTINUE, dtype, *(str(model.folder) for model in models)],
            input=rest,
            env={**os.environ, "THALWEG_KERNELS": kernels},
            timeout=240,
            check=True,
        )
        for model, session in zip(models, sessions, strict=True):
            found = np.load(f"{model.folder}.npz")
            assert_same(found["second"], model.encode(TEXT), dtype)
            assert_same(model.restore(f"{model.folder}.continued").vector(), model.encode(TEXT), dtype)
            assert int(found["tokens"]) == session.tokens
            low = 1e-6 if dtype == "float32" else 5e-3
            np.testing.assert_allclose(found["first"], session.vector(), rtol=0, atol=low)


def test_all_of_it_comes_back(model: Embedder, tmp_path: Path) -> None:
    session = model.session(prompt="find: ", normalize_embeddings=False, truncate_dim=9, special_tokens="text")
    session.append(TEXT.encode() + "é".encode()[:1])
    again = model.restore(session.save(tmp_path / "session"))
    for each in (session, again):
        each.append("é".encode()[1:] + b"<|endoftext|>")
    np.testing.assert_array_equal(again.vector(), session.vector())
    assert again.tokens == session.tokens
    assert again.nbytes == session.nbytes == model.plan_memory().state
    assert again.settings.plain() == session.settings.plain()


def test_a_session_that_has_only_begun(model: Embedder, tmp_path: Path) -> None:
    for text in ("", "a"):
        again = model.restore(grown(model, text).save(tmp_path / "session"))
        assert_same(again.vector(), model.encode(text))
        again.append(" and on")
        assert_same(again.vector(), model.encode(f"{text} and on"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_file_is_as_large_as_the_plan_says(variant: str, folder: Path, tmp_path: Path) -> None:
    model = load(folder / variant, variant)
    for text in (make_text(40), make_text(4000), TEXT):
        session = grown(model, text)
        size = session.save(tmp_path / "session").stat().st_size
        state = model.plan_memory().state
        assert session.nbytes == state
        assert state < size < state + 6000


def test_a_text_that_cannot_be_cut_takes_its_own_bytes(model: Embedder, tmp_path: Path) -> None:
    """It waits whole; a file of it is still read, but not with a smaller bound."""
    session = grown(model, "x" + " " * 100_000)
    path = session.save(tmp_path / "session")
    assert path.stat().st_size < 110_000
    again = model.restore(path)
    again.append("and on")
    assert_same(again.vector(), model.encode("x" + " " * 100_000 + "and on"))
    with pytest.raises(InvalidInputError, match=r"100001 characters without a cut, and max_uncut_chars is 16384"):
        model.restore(path, max_uncut_chars=16_384)


def test_the_prompt_is_not_in_the_file(model: Embedder, tmp_path: Path) -> None:
    secret = "a prompt that nobody should read in a file "
    path = grown(model, make_text(100), prompt=secret * 3).save(tmp_path / "session")
    assert b"nobody" not in path.read_bytes()


# -- what belongs to another model ------------------------------------------------------------------------------------


def refused(model: Embedder, path: Path, match: str, **options: Any) -> None:
    with pytest.raises(InvalidInputError, match=match) as caught:
        model.restore(path, **options)
    assert str(path) in str(caught.value)


def test_another_model(model: Embedder, folder: Path, tmp_path: Path) -> None:
    path = grown(model).save(tmp_path / "session")
    others = [
        load(folder / "mamba", "mamba"),
        load(folder / "other", config={"n_layers": 2}),
        load(folder / "other numbers", config={"time_step_limit": (0.0, 1.0)}),
        load(folder / "last", pooling="last"),
        load(folder / "lexicon", pooling="lexicon"),
        thalweg.load(model.folder, device="cpu", special_tokens="text"),
    ]
    for other in others:
        refused(other, path, f"its fingerprint is '{model.fingerprint}', and this model's '{other.fingerprint}'")
    refused(load(folder / "mamba2", dtype="bfloat16"), path, "its dtype is 'float32', and this model's 'bfloat16'")
    for wanted in ({"pooling": "last"}, {"lexicon": make_lexicon(320)}):
        other = thalweg.load(model.folder, device="cpu")
        other.embedding_config = replace(other.embedding_config, **wanted)
        refused(other, path, "its pooling is 'mean', and this model's 'last'|its sums are of another width")


def test_tensors_of_another_model(model: Embedder, folder: Path, tmp_path: Path) -> None:
    """Whatever the header says."""
    path = grown(load(folder / "mamba", "mamba")).save(tmp_path / "session")
    edit(path, lambda header, tensors: header["model"].update(model.state_identity))
    refused(model, path, "the saved state is of another model")


def test_another_quantisation(tmp_path: Path) -> None:
    config = {"d_model": 320, "n_heads": 20, "head_dim": 32, "n_layers": 1}
    plain = load(tmp_path / "wide", config=config, dtype="bfloat16")
    path = grown(plain).save(tmp_path / "session")
    quantised = thalweg.load(tmp_path / "wide", device="cpu", quantize="int8")
    assert quantised.quantization == "int8"
    refused(quantised, path, "its (dtype|quantization) is")
    assert_same(quantised.restore(grown(quantised).save(path)).vector(), quantised.encode(TEXT), "bfloat16")


def test_another_numeric_path(model: Embedder, tmp_path: Path) -> None:
    path = grown(model, make_text(100)).save(tmp_path / "session")
    with with_kernels(False):
        refused(model, path, "its numeric path is 'cpu, .*', and this model's 'cpu, PyTorch'; other_numeric_path=True")
        again = model.restore(path, other_numeric_path=True)
        again.append("and on")
        assert_same(again.vector(), model.encode(make_text(100) + "and on"))


# -- what is no session -----------------------------------------------------------------------------------------------


def test_other_files(model: Embedder, tmp_path: Path) -> None:
    path = tmp_path / "session"
    others: dict[str, bytes] = {
        "nothing": b"",
        "text": b"the river runs",
        "zeros": bytes(1000),
        "weights": (model.folder / "model.safetensors").read_bytes(),
        "no metadata": safetensors.torch.save({"a": torch.zeros(3)}),
        "deep": (lambda text: struct.pack("<Q", len(text)) + text)(b'{"__metadata__":' + b"[" * 200_000),
        "long header": struct.pack("<Q", 1 << 60) + b"{}",
        "no UTF-8": struct.pack("<Q", 4) + b'{"\xff"',
    }
    for data in others.values():
        path.write_bytes(data)
        refused(model, path, "it is no saved session")
    with pytest.raises(FileNotFoundError, match="not there"):
        model.restore(tmp_path / "not there")
    with pytest.raises(OSError, match="directory"):
        model.restore(tmp_path)
    with path.open("wb") as stream:
        stream.truncate(1 << 33)
    refused(model, path, "more than .* bytes, which no session of this model has")


def test_another_version(model: Embedder, tmp_path: Path) -> None:
    path = grown(model).save(tmp_path / "session")
    edit(path, version="3")
    refused(model, path, "it has version '3', and this thalweg reads '1' and '2'; update thalweg")
    edit(path, version="1", format="another")
    refused(model, path, "it is no saved session")


@pytest.mark.slow
def test_every_byte_counts(model: Embedder, tmp_path: Path) -> None:
    path = grown(model, make_text(40)).save(tmp_path / "session")
    data = path.read_bytes()
    rng = random.Random(0)
    for at in [*range(0, 300), *rng.sample(range(len(data)), 500), *range(len(data) - 40, len(data))]:
        changed = bytearray(data)
        changed[at] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        refused(model, path, "session")


def test_truncations(model: Embedder, tmp_path: Path) -> None:
    path = grown(model, make_text(40)).save(tmp_path / "session")
    data = path.read_bytes()
    for size in [*range(0, 60), *range(60, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:size])
        refused(model, path, "session")
    path.write_bytes(data + b"\0")
    refused(model, path, "session")


def edit(
    path: Path,
    change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None] = lambda header, tensors: None,
    **metadata: str,
) -> None:
    """What an attacker does: change the header and the tensors, and put a checksum that fits."""
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as opened:
        found = opened.metadata()
    header = json.loads(found["header"])
    change(header, tensors)
    text = json.dumps(header)
    digest = file._digest(text, tensors)
    path.write_bytes(safetensors.torch.save(tensors, {**found, "header": text, "sha256": digest, **metadata}))


def random_change(rng: random.Random, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """A few random edits of the header and its tensors."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if rng.random() < 0.2:
            name = rng.choice(sorted(tensors))
            tensor = tensors[name]
            kind = rng.choice(["drop", "dtype", "shape", "rename", "values", "nan", "longer", "rows"])
            if kind == "drop":
                del tensors[name]
            elif kind == "dtype":
                tensors[name] = tensor.to(
                    rng.choice([torch.float16, torch.int8, torch.int64, torch.float64, torch.bool])
                )
            elif kind == "shape":
                tensors[name] = tensor.reshape(-1).clone()
            elif kind == "rename":
                tensors[rng.choice(["layers.0.other", "sums", "held", "window.text", "kept.rows", "x"])] = tensors.pop(
                    name
                )
            elif kind == "values":
                tensors[name] = (torch.rand(tensor.shape) * rng.choice([3, 300, 1e9, -1e9])).to(tensor.dtype)
            elif kind == "nan" and tensor.is_floating_point():
                tensors[name] = torch.full_like(tensor, rng.choice([float("nan"), float("inf")]))
            elif kind == "longer":
                tensors[name] = tensor.reshape(-1).repeat(rng.choice([0, 2, 50]))
            elif tensor.ndim:
                tensors[name] = torch.cat([tensor, tensor])
            if not tensors:
                return
            continue
        edit_json(rng, header)


EDITS = int(os.environ.get("EDITS", "150"))

EDITED: dict[str, Any] = {
    "prose": (lambda: make_text(300), "bpe"),
    "begun": (lambda: "a", "bpe"),
    "a long word": (lambda: make_text(20) + "".join(random.Random(3).choices("0123456789", k=9000)), "bpe"),
    "long and uncut": (lambda: "x" + " " * 3000, "bpe"),
    "world": (lambda: TEXT, "world"),
    "in sections": (lambda: PROSE, "bpe", Sections("sentence")),
    "in sections up to their ends": (lambda: PROSE, "bpe", Sections("paragraph", 2, "prefix")),
    "in sections of tokens": (lambda: PROSE, "bpe", Sections("tokens", 30)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EDITED)
def test_whatever_a_file_says(name: str, folder: Path, tmp_path: Path) -> None:
    """With a checksum that fits: an error of ours, or a session that works or tells that it does not."""
    text, tokenizer, *sections = EDITED[name]
    model = load(folder / tokenizer, tokenizer=tokenizer)
    begun = model.session(sections=sections[0] if sections else None)
    begun.append(text())
    whole = begun.save(tmp_path / "whole").read_bytes()
    path = tmp_path / "session"
    rng = random.Random(name)
    outcomes = {"refused": 0, "worked": 0, "failed": 0}
    for number in range(EDITS):
        path.write_bytes(whole)
        edit(path, lambda header, tensors: random_change(rng, header, tensors))
        began = time.perf_counter()
        try:
            session = model.restore(path)
        except InvalidInputError:
            outcomes["refused"] += 1
            continue
        try:
            session.append("123 and on with 文字 " * rng.choice([1, 400]))
            session.fork().vector()
            session.append(b"\xc3")
            session.append(b"\xa9")
            assert np.isfinite(session.vector()).all()
            assert session.tokens > 0
            if session.settings.sections is not None:
                assert all(np.isfinite(section.vector).all() for section in session.sections())
            session.save(path)
            model.restore(path)
            outcomes["worked"] += 1
        except ThalwegError:
            outcomes["failed"] += 1
        assert time.perf_counter() - began < 5, number
    assert outcomes["refused"] > EDITS // 8, outcomes


def changed(key: str, value: Any) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], None]:
    """Set header[a][b] for "a.b"."""

    def change(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        *way, last = key.split(".")
        inside = header
        for part in way:
            inside = inside[part]
        inside[last] = value

    return change


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("window.done", -1),
        ("window.done", 10**9),
        ("window.start", 2**80),
        ("window.target", 10**12),
        ("window.text", 3),
        ("window.text", "\ud800"),
        ("window.seam_ids", [-5]),
        ("window.gaps", [[5, -1]]),
        ("window.word", {"path": {}, "kinds": 1}),
        ("window.word", "a"),
        ("window", []),
        ("pending", "6162"),
        ("pending", "e4bdb8"),
        ("pending", "g"),
        ("n_bytes", -1),
        ("n_tokens", 0),
        ("n_tokens", 10**40),
        ("n_summed", 10**9),
        ("n_summed", 0),
        ("other", 1),
        ("settings.normalize", "no"),
        ("settings.truncate_dim", 1000),
        ("settings.special_tokens", "both"),
        ("settings", None),
        ("model", "a"),
    ],
)
def test_single_lies(key: str, value: Any, model: Embedder, tmp_path: Path) -> None:
    path = grown(model, make_text(60)).save(tmp_path / "session")
    edit(path, changed(key, value))
    refused(model, path, "cannot be restored")


def test_ids_outside_the_vocabulary(model: Embedder, tmp_path: Path) -> None:
    path = grown(model, make_text(60)).save(tmp_path / "session")
    for bad in (10**6, -1, model.tokenizer.vocab_size):
        edit(path, lambda header, tensors, bad=bad: tensors.update(held=torch.tensor([bad], dtype=torch.int32)))
        refused(model, path, "cannot be restored: .*it holds the id")


def test_a_state_that_is_not_finite(model: Embedder, tmp_path: Path) -> None:
    """An error where it is used; not before, as a state of 200 MiB is not looked through."""
    path = grown(model, make_text(60)).save(tmp_path / "session")
    whole = path.read_bytes()
    for bad in (float("nan"), float("inf"), 1e300):
        edit(path, lambda header, tensors, bad=bad: tensors["sums"].fill_(bad))
        refused(model, path, "its sums are too large, or no numbers")
    path.write_bytes(whole)
    edit(path, lambda header, tensors: [t.fill_(float("nan")) for n, t in tensors.items() if n.startswith("layers")])
    session = model.restore(path)
    with pytest.raises(thalweg.NumericalError):
        session.vector()
    with pytest.raises(thalweg.NumericalError):
        session.append(make_text(60))


@pytest.mark.subprocess
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory")
def test_a_file_takes_bounded_memory(model: Embedder, tmp_path: Path) -> None:
    """The worst header, and 60 MB of text: less than 2 GiB beside the libraries."""
    path = grown(model, make_text(60)).save(tmp_path / "session")
    bombs = [
        lambda header, tensors: header.update(bomb=[{"": 0}] * 300_000),
        lambda header, tensors: (
            tensors.update({"window.text": torch.full((60_000_000,), 32, dtype=torch.uint8)})
            or header["window"].update(text={"in tensor": "window.text"})
        ),
        lambda header, tensors: (
            tensors.update({"window.seams": torch.zeros(7_000_000, dtype=torch.int64)})
            or header["window"].update(seam_ids={"in tensor": "window.seams"})
        ),
    ]
    program = """
import resource, sys, thalweg
model = thalweg.load(sys.argv[1], device="cpu")
model.encode("a")
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), used + (2 << 30)))
try:
    model.restore(sys.argv[2])
except thalweg.InvalidInputError as error:
    print("refused", str(error)[-100:])
"""
    whole = path.read_bytes()
    for bomb in bombs:
        path.write_bytes(whole)
        edit(path, bomb)
        command = [sys.executable, "-c", program, str(model.folder), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout.startswith("refused"), (done.stdout, done.stderr[-500:])


# -- files of earlier versions ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("folder_", sorted(GOLDEN.glob("v1-*")), ids=lambda path: path.name)
def test_files_of_earlier_versions(folder_: Path) -> None:
    """Made by golden/sessions/make.py: the state of a text, and the vectors then and after going on."""
    model = thalweg.load(folder_ / "model", device="cpu", dtype="float32")
    wanted = json.loads((folder_ / "expected.json").read_text(encoding="utf-8"))
    for name in ("words", "inside a character", "a word without end"):
        session = model.restore(folder_ / f"{name}.session", other_numeric_path=True)
        case = wanted[name]
        session.append(bytes.fromhex(case["more"]))
        assert session.tokens == case["tokens"]
        assert_same(session.vector(), np.float32(case["vector"]))
        whole = bytes.fromhex(case["text"]) + bytes.fromhex(case["more"])
        assert_same(session.vector(), model.encode(whole.decode()))


def test_files_with_sections_of_earlier_versions() -> None:
    folder = GOLDEN / "v2"
    model = thalweg.load(GOLDEN / "v1-mamba2" / "model", device="cpu", dtype="float32")
    for case in json.loads((folder / "expected.json").read_text(encoding="utf-8")):
        session = model.restore(folder / case["file"], other_numeric_path=True)
        session.append(bytes.fromhex(case["more"]))
        got = session.sections()
        assert [[s.section, s.n_tokens, s.char_start, s.char_end] for s in got] == case["places"]
        assert_same(np.stack([s.vector for s in got]), np.float32(case["vectors"]))
        whole = (bytes.fromhex(case["text"]) + bytes.fromhex(case["more"])).decode()
        want = list(model.encode_sections(whole, by=case["by"], every=case["every"], mode=case["mode"]))
        assert_same(np.stack([s.vector for s in got]), np.stack([s.vector for s in want]))


def test_there_is_one_of_every_family() -> None:
    names = {path.name for path in GOLDEN.glob("v1-*")}
    assert names == {f"v1-{variant}" for variant in VARIANTS}
