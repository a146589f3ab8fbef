"""Whole runs against a server that misbehaves: counts, order, what is kept, and how a run goes on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from thalweg.errors import CorpusError, EndpointError
from thalweg.synthesis.client import Endpoint as Address
from thalweg.synthesis.prompts import example_prompt
from thalweg.synthesis.run import Status, synthesize
from thalweg.synthesis.settings import Settings
from thalweg.synthesis.tasks import KINDS, TASK_TYPES, counts_of_total

from .faults import CONTENT_FAULTS, faulty, unreliable
from .server import Answer, Endpoint, Request, endpoint, good_answer, good_fields, kind_of

LANGUAGES = {"English": 3.0, "Russian": 1.0, "Chinese": 1.0, "Greek": 1.0}


def settings(counts: dict[Any, int] | None = None, **options: Any) -> Settings:
    return Settings(counts or dict.fromkeys(TASK_TYPES, 4), **{"languages": LANGUAGES, **options})


def run(server: Endpoint, folder: Path, what: Settings | None = None, **options: Any) -> Status:
    overwrite = options.pop("overwrite", False)
    address = Address(server.url, "model", **{"timeout": 5.0, "first_pause": 0.01, **options})
    return synthesize(what or settings(), address, folder, overwrite=overwrite)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def data(folder: Path) -> list[dict[str, Any]]:
    return [row for name in TASK_TYPES if (path := folder / "data" / f"{name}.jsonl").exists() for row in lines(path)]


def rejections(folder: Path) -> Counter[tuple[str, int, str]]:
    return Counter((line["id"], line["attempt"], line["reason"]) for line in lines(folder / "rejected.jsonl"))


def asked(server: Endpoint) -> list[str]:
    return [request.prompt for request in server.requests]


def test_all_types_have_as_many_rows_as_wanted(tmp_path: Path) -> None:
    what = settings(counts_of_total(40))
    with endpoint() as server:
        status = run(server, tmp_path / "out", what)
    assert (status.accepted, status.given_up, status.rejected) == (40, 0, Counter())
    for name, count in what.counts.items():
        rows = lines(tmp_path / "out" / "data" / f"{name}.jsonl")
        assert [row["id"] for row in rows] == [f"{name}/{number}" for number in range(count)]
        for row in rows:
            texts = [row["query"], row["positive"], *row["negatives"]]
            assert all(texts)
            assert len(set(texts)) == len(texts)
            assert len(row["negatives"]) == KINDS[name].has_negative
            assert row["task_type"] == name
            assert row["instruction"]
            assert len(row["languages"]) == (2 if name == "bitext" else 1)
    instructions = [row["instruction"] for row in data(tmp_path / "out") if KINDS[row["task_type"]].brainstormed]
    assert len(set(instructions)) == len(instructions), "a task for each example"


def test_graded_similarities_are_pairs_as_well(tmp_path: Path) -> None:
    with endpoint() as server:
        run(server, tmp_path / "out", settings({"sts": 5, "bitext": 5, "short-short": 1}))
    rows = [row for row in data(tmp_path / "out") if row["task_type"] != "short-short"]
    pairs = lines(tmp_path / "out" / "pairs.jsonl")
    assert len(pairs) == 20
    for row, positive, negative in zip(rows, pairs[::2], pairs[1::2], strict=True):
        assert row["similarities"][0] >= 4 > row["similarities"][1]
        assert positive["sentence1"] == negative["sentence1"] == row["query"]
        assert [positive["sentence2"], negative["sentence2"]] == [row["positive"], *row["negatives"]]
        assert [5 * positive["score"], 5 * negative["score"]] == row["similarities"]
    assert all("similarities" not in row for row in data(tmp_path / "out") if row["task_type"] == "short-short")


@pytest.mark.slow
def test_a_seed_is_a_data_set(tmp_path: Path) -> None:
    with endpoint() as server:
        for name, seed, concurrency in [("a", 0, 16), ("b", 0, 1), ("c", 1, 16)]:
            run(server, tmp_path / name, settings(seed=seed, concurrency=concurrency))
        one_by_one = server.requests[len(server.requests) // 3 : len(server.requests) // 3 * 2]
    a, b, c = (data(tmp_path / name) for name in "abc")
    assert a == b
    assert not {row["query"] for row in a} & {row["query"] for row in c}
    types = [kind_of(request.prompt) for request in one_by_one if not request.prompt.startswith("Think of")]
    assert types != sorted(types, key=types.index), "types are mixed, so that a run that ends early has some of each"


def test_replies_that_cannot_be_used_are_kept_and_asked_for_anew(tmp_path: Path) -> None:
    faults = list(CONTENT_FAULTS)

    def behave(request: Request) -> Answer:
        number = next((n for n, text in firsts.items() if text == request.prompt), None)
        return good_answer(request) if number is None else faulty(request, faults[number])

    what = settings({"sts": len(faults)})
    firsts = {n: example_prompt(0, "sts", n, 0, LANGUAGES, None).text for n in range(len(faults))}
    with endpoint(behave) as server:
        status = run(server, tmp_path / "out", what)
        assert len(asked(server)) == 2 * len(faults)
    assert status.accepted == len(faults)
    assert status.rejected == Counter(CONTENT_FAULTS.values())
    rejected = {line["id"]: line for line in lines(tmp_path / "out" / "rejected.jsonl")}
    for number, fault in enumerate(faults):
        line = rejected[f"sts/{number}"]
        assert (line["attempt"], line["reason"]) == (0, CONTENT_FAULTS[fault])
        assert line["detail"]
        assert line["attributes"]["language"] in LANGUAGES
        reply = faulty(Request(firsts[number], {}, {}, 0, 0.0), fault)
        assert line["reply"] == (reply.body if fault == "no choices" else reply.content)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rejected"] == dict(status.rejected)
    assert report["replies"] == 2 * len(faults)


def test_counts_are_exact_with_a_model_that_is_often_wrong(tmp_path: Path) -> None:
    with endpoint(unreliable) as server:
        status = run(server, tmp_path / "out", settings(dict.fromkeys(TASK_TYPES, 12), attempts=20))
    assert status.accepted == len(data(tmp_path / "out")) == 72
    assert sum(status.rejected.values()) > 15
    assert sum(rejections(tmp_path / "out").values()) == sum(status.rejected.values())
    assert len(server.requests) > status.replies, "some were tried again"
    assert status.prompt_tokens > 0
    assert status.cost((1.0, 2.0)) == (status.prompt_tokens + 2 * status.reply_tokens) / 1e6


def test_an_example_is_given_up_after_its_attempts_and_can_be_tried_again(tmp_path: Path) -> None:
    stubborn = {example_prompt(0, "sts", 1, attempt, LANGUAGES, None).text for attempt in range(3)}
    what = settings({"sts": 3}, attempts=3)
    with endpoint(lambda request: Answer("no") if request.prompt in stubborn else good_answer(request)) as server:
        status = run(server, tmp_path / "out", what)
        assert (status.accepted, status.given_up) == (2, 1)
        assert [row["id"] for row in data(tmp_path / "out")] == ["sts/0", "sts/2"]
        n = len(server.requests)
        again = run(server, tmp_path / "out", what)
        assert (again.accepted, again.given_up, again.before, len(server.requests)) == (2, 1, 2, n)
        more = run(server, tmp_path / "out", settings({"sts": 3}, attempts=4))
        assert (more.accepted, more.given_up, len(server.requests)) == (3, 0, n + 1)


def test_no_query_comes_twice(tmp_path: Path) -> None:
    def behave(request: Request) -> Answer:
        fields = good_fields(request)
        if request.prompt in firsts:
            fields["S1"] = "The same  Sentence." if request.prompt == firsts[0] else "the same sentence."
        return Answer(json.dumps(fields))

    what = settings({"sts": 4}, languages={"English": 1.0})
    firsts = [example_prompt(0, "sts", n, 0, what.languages, None).text for n in range(3)]
    with endpoint(behave) as server:
        status = run(server, tmp_path / "out", what)
        assert len(server.requests) == 6
    assert status.accepted == 4
    rows = data(tmp_path / "out")
    assert [row["query"] for row in rows].count("The same  Sentence.") == 1
    assert len({row["query"].casefold() for row in rows}) == 4
    assert rejections(tmp_path / "out") == Counter([("sts/1", 0, "duplicate"), ("sts/2", 0, "duplicate")])
    assert status.replies == 6, "the reply of a duplicate is counted once"
    with endpoint(behave) as server:
        again = run(server, tmp_path / "out", what)
        assert (again.accepted, again.replies, len(server.requests)) == (4, 6, 0)


def test_tasks_are_asked_for_until_there_are_enough_different_ones(tmp_path: Path) -> None:
    def behave(request: Request) -> Answer:
        if not request.prompt.startswith("Think of"):
            return good_answer(request)
        few = int(request.chance * 1000) % 3
        return Answer(json.dumps([f"Given ship {few} of {i}, find its port" for i in range(5)]))

    with endpoint(behave) as server:
        status = run(server, tmp_path / "out", settings({"short-short": 12}, tasks_per_call=5))
    assert 3 <= len(lines(tmp_path / "out" / "tasks.jsonl")) <= 12
    assert status.accepted == 12
    assert status.tasks == {"short-short": len({row["instruction"] for row in data(tmp_path / "out")})}


def test_few_tasks_have_several_examples_each(tmp_path: Path) -> None:
    def behave(request: Request) -> Answer:
        if request.prompt.startswith("Think of"):
            return Answer(json.dumps(["Given a ship, find its port", "Given a port, find its ships"]))
        return good_answer(request)

    with endpoint(behave) as server:
        status = run(server, tmp_path / "out", settings({"long-long": 6}))
        assert sum(prompt.startswith("Think of") for prompt in asked(server)) <= 4
    assert (status.accepted, status.tasks, status.tasks_wanted) == (6, {"long-long": 2}, {"long-long": 6})
    assert set(Counter(row["instruction"] for row in data(tmp_path / "out")).values()) == {3}


def test_examples_per_task(tmp_path: Path) -> None:
    with endpoint() as server:
        run(server, tmp_path / "out", settings({"long-short": 10}, examples_per_task=4))
    assert sorted(Counter(row["instruction"] for row in data(tmp_path / "out")).values()) == [3, 3, 4]


def test_a_model_without_a_usable_task_is_an_error(tmp_path: Path) -> None:
    with (
        endpoint(lambda request: Answer("I cannot help with that.")) as server,
        pytest.raises(EndpointError, match="no usable long-short task in 9 calls; what it answered is in"),
    ):
        run(server, tmp_path / "out", settings({"long-short": 45}))
    assert rejections(tmp_path / "out")[("tasks/long-short/0", 0, "refusal")] == 1


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("step", ["tasks", "examples"])
def test_a_run_whose_endpoint_talked_nonsense_goes_on_once_it_is_mended(
    step: str, attempts: int, tmp_path: Path
) -> None:
    """All replies of a step are unusable, which says more about the endpoint than about the prompts."""

    def broken(request: Request) -> Answer:
        in_step = request.prompt.startswith("Think of") == (step == "tasks")
        return Answer("Welcome to nginx!") if in_step else good_answer(request)

    what = settings({"short-long": 4, "sts": 2} if step == "tasks" else {"sts": 3}, attempts=attempts)
    message = "no usable short-long task" if step == "tasks" else "no usable example of 3 wanted"
    with endpoint(broken) as server:
        for _ in range(3):  # it stays broken for a while
            n = len(server.requests)
            with pytest.raises(EndpointError, match=f"{message}.*the same command continues"):
                run(server, tmp_path / "out", what)
            assert len(server.requests) > n
            assert not (tmp_path / "out" / "data").exists()
        assert len(set(asked(server))) == len(server.requests), "no prompt that failed is asked again"
        server.behave = good_answer
        status = run(server, tmp_path / "out", what)
    assert (status.accepted, status.given_up) == (sum(what.counts.values()), 0)
    n_replies = len(server.requests)
    assert status.replies == n_replies
    assert sum(status.rejected.values()) == n_replies - status.accepted - (step == "tasks")


@pytest.mark.slow
def test_seeds_are_sent_if_asked_for(tmp_path: Path) -> None:
    with endpoint() as server:
        run(server, tmp_path / "without")
        assert not any("seed" in request.body for request in server.requests)
        run(server, tmp_path / "with", settings(send_seed=True))
        seeds = [request.body["seed"] for request in server.requests if "seed" in request.body]
        assert len(set(seeds)) == len(seeds) == len(server.requests) // 2


def test_temperatures_of_both_steps(tmp_path: Path) -> None:
    with endpoint() as server:
        run(server, tmp_path / "out")
        sent = {(request.prompt.startswith("Think"), request.body["temperature"]) for request in server.requests}
        assert sent == {(True, 1.0), (False, 0.8)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    with endpoint(unreliable) as server:
        run(server, folder, settings(attempts=20))
    return folder


def assert_same(a: Path, b: Path) -> None:
    """The same data, from the same replies, none twice."""
    assert data(a) == data(b)
    for name in ("tasks.jsonl", "examples.jsonl"):
        left, right = (sorted(map(str, lines(folder / name))) for folder in (a, b))
        assert left == right
        assert len(set(left)) == len(left)
    assert rejections(a) == rejections(b)
    assert json.loads((a / "report.json").read_text()) == json.loads((b / "report.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1, 3, 17, 40])
def test_a_run_that_loses_its_endpoint_goes_on_later(after: int, undisturbed: Path, tmp_path: Path) -> None:
    def behave(request: Request) -> Answer:
        return unreliable(request) if len(server.requests) <= after else Answer(status=401, body="{}")

    with endpoint(behave) as server:
        with pytest.raises(EndpointError, match="HTTP 401"):
            run(server, tmp_path / "out", settings(attempts=20))
        assert not (tmp_path / "out" / "data").exists(), "no data set that is not whole"
        server.behave = unreliable
        run(server, tmp_path / "out", settings(attempts=20))
    assert_same(undisturbed, tmp_path / "out")


@pytest.mark.slow
def test_an_outage_costs_no_attempts(undisturbed: Path, tmp_path: Path) -> None:
    with endpoint(lambda request: Answer(status=500)) as server:
        with pytest.raises(EndpointError, match="30 tries in a row failed"):
            run(server, tmp_path / "out", settings(attempts=20, concurrency=2), retries=2, max_failures=30)
        assert {reason for _, _, reason in rejections(tmp_path / "out")} == {"request failed"}
        server.behave = unreliable
        run(server, tmp_path / "out", settings(attempts=20))
    assert data(tmp_path / "out") == data(undisturbed)


def cuts(path: Path) -> Iterable[int]:
    """Ends of a file in the middle of its last line, and of the one before."""
    content = path.read_bytes()
    last = content[:-1].rfind(b"\n") + 1
    before = content[: last - 1].rfind(b"\n") + 1
    return [last + 1, last + (len(content) - last) // 2, len(content) - 1, (before + last) // 2]


@pytest.mark.parametrize("name", ["tasks.jsonl", "examples.jsonl", "rejected.jsonl"])
def test_a_torn_line_is_cut_off_and_made_again(name: str, undisturbed: Path, tmp_path: Path) -> None:
    for number, cut in enumerate(cuts(undisturbed / name)):
        out = tmp_path / str(number)
        out.mkdir()
        for file in ("manifest.json", "tasks.jsonl", "examples.jsonl", "rejected.jsonl"):
            content = (undisturbed / file).read_bytes()
            (out / file).write_bytes(content[:cut] if file == name else content)
        with endpoint(unreliable) as server:
            run(server, out, settings(attempts=20))
            assert len(server.requests) <= 4
        assert data(out) == data(undisturbed)


def test_a_line_that_was_changed_is_an_error(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for file in ("manifest.json", "tasks.jsonl", "rejected.jsonl"):
        (out / file).write_bytes((undisturbed / file).read_bytes())
    first, rest = (undisturbed / "examples.jsonl").read_bytes().split(b"\n", 1)
    (out / "examples.jsonl").write_bytes(first[:-9] + b"\n" + rest)
    with (
        endpoint() as server,
        pytest.raises(CorpusError, match=r"examples.jsonl holds something else than a record at byte 0"),
    ):
        run(server, out, settings(attempts=20))


def test_more_examples_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    few, more = settings({"sts": 3, "long-short": 5}), settings({"sts": 7, "long-short": 30, "bitext": 2})
    with endpoint() as server:
        run(server, tmp_path / "out", few)
        first = data(tmp_path / "out")
        n = len(server.requests)
        run(server, tmp_path / "out", more)
        assert len(server.requests) - n == 4 + 25 + 2 + 1, "and one more call for tasks"
    rows = data(tmp_path / "out")
    assert len(rows) == 39
    assert all(row in rows for row in first)
    with endpoint() as server:
        run(server, tmp_path / "out", few)
        assert not server.requests
    assert data(tmp_path / "out")[: len(first)] == first


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"languages": {"English": 1.0, "Greek": 1.0}}, {"temperature": 0.5}, {"examples_per_task": 2}],
)
def test_another_run_is_not_gone_on_with(change: dict[str, Any], tmp_path: Path) -> None:
    with endpoint() as server:
        run(server, tmp_path / "out", settings({"sts": 2}))
        with pytest.raises(CorpusError, match="was begun with"):
            run(server, tmp_path / "out", settings({"sts": 2}, **change))
        with pytest.raises(CorpusError, match=r"was begun with top_p 0\.9, now it is 0\.8"):
            run(server, tmp_path / "out", settings({"sts": 2}), top_p=0.8)
        n = len(server.requests)
        status = run(server, tmp_path / "out", settings({"sts": 2}, **change), overwrite=True)
        assert (status.accepted, status.before, len(server.requests) - n) == (2, 0, 2)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "examples.jsonl").write_text("mine\n")
    with endpoint() as server:
        for overwrite in (False, True):
            with pytest.raises(CorpusError, match=r"holds 'examples.jsonl', but no run of thalweg synth"):
                run(server, tmp_path, overwrite=overwrite)
    assert (tmp_path / "examples.jsonl").read_text() == "mine\n"


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    def behave(request: Request) -> Answer:
        with pytest.raises(CorpusError, match="another run is writing to"):
            run(server, tmp_path / "out", settings({"sts": 1}))
        tried.append(request)
        return good_answer(request)

    tried: list[Request] = []
    with endpoint(behave) as server:
        run(server, tmp_path / "out", settings({"sts": 1}))
    assert tried
