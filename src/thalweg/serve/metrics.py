"""What is counted, for Prometheus: under text-embeddings-inference's names, and more under ours."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Hashable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from thalweg.serve.model import ServedModel
from thalweg.serve.sessions import OwnedSessions

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
TOKENS = (8, 32, 128, 512, 2048, 8192, 32768, 131072, 524288, 2097152)
LENGTHS = ((128, "128"), (1024, "1k"), (8192, "8k"), (131072, "128k"))


def length_class(tokens: int) -> str:
    """The label of a request by its tokens."""
    return next((label for most, label in LENGTHS if tokens <= most), "more")


class Metrics:
    """All metrics of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.tei = TeiCounts()
        registry.register(self.tei)
        self.tei_durations = {
            name: Histogram(f"te_{name}", words, buckets=SECONDS, registry=registry)
            for name, words in (
                ("request_duration", "Seconds of requests."),
                ("request_inference_duration", "Seconds of requests in the engine."),
                ("request_queue_duration", "Seconds for which requests waited for room."),
                ("request_tokenization_duration", "Seconds in which the texts of requests were tokenised."),
                ("embed_duration", "Seconds of texts."),
                ("embed_inference_duration", "Seconds of texts in the engine."),
                ("embed_queue_duration", "Seconds for which texts waited for room."),
                ("embed_tokenization_duration", "Seconds in which texts were tokenised."),
            )
        }
        self.tei_length = Histogram("te_request_input_length", "Tokens of requests.", buckets=TOKENS, registry=registry)
        self.tei_batch = Histogram("te_batch_next_tokens", "Tokens of steps.", buckets=TOKENS, registry=registry)
        self.requests = Counter(
            "thalweg_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self.latency = Histogram(
            "thalweg_request_seconds", "Seconds of requests by the length of their texts.", ["length"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.tokens = Counter("thalweg_tokens", "Tokens that were embedded.", ["model"], registry=registry)
        self.steps = Counter("thalweg_steps", "Steps of the engine.", ["model"], registry=registry)
        self.fill = Histogram(
            "thalweg_step_fill", "Part of max_tokens_per_step that a step used.", ["model"],
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1), registry=registry,
        )  # fmt: skip
        self.step_seconds = Counter("thalweg_step_seconds", "Seconds of steps.", ["model"], registry=registry)

    def step(self, model: str, max_tokens: int, tokens: int, seconds: float, of_clients: Counts[Hashable]) -> None:
        """One step of a model has been made. Called by the engine's thread."""
        self.tokens.labels(model).inc(tokens)
        self.steps.labels(model).inc()
        self.step_seconds.labels(model).inc(seconds)
        self.fill.labels(model).observe(tokens / max_tokens)
        self.tei_batch.observe(tokens)

    def request(self, route: str, method: str, status: int, error: str | None, seconds: float, tokens: int) -> None:
        """A request has been answered. method: "single" or "batch", as TEI has it."""
        self.requests.labels(route, str(status)).inc()
        self.tei.add("te_request_count", "method", method)
        if error is None:
            self.tei.add("te_request_success", "method", method)
            self.tei_durations["request_duration"].observe(seconds)
        else:
            self.tei.add("te_request_failure", "err", error)
        if tokens:
            self.tei_length.observe(tokens)
            self.latency.labels(length_class(tokens)).observe(seconds)

    def embedded(self, n_texts: int, queue: float, tokenization: float, inference: float) -> None:
        """The texts of a request have been embedded; the seconds of its parts."""
        self.tei.add("te_embed_count", "", "", n_texts)
        self.tei.add("te_embed_success", "", "", n_texts)
        parts = {"queue": queue, "tokenization": tokenization, "inference": inference}
        self.tei_durations["embed_duration"].observe(sum(parts.values()))
        for part, seconds in parts.items():
            for what in ("request", "embed"):
                self.tei_durations[f"{what}_{part}_duration"].observe(seconds)

    def watch(self, models: Sequence[ServedModel], sessions: Mapping[str, OwnedSessions]) -> None:
        """Report what these hold."""
        self.registry.register(_Present(models, sessions))

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)


class TeiCounts:
    """Counters under names without the "_total" that clients of Prometheus put behind them."""

    def __init__(self) -> None:
        self._counts: Counts[tuple[str, str, str]] = Counts()

    def add(self, name: str, label: str, value: str, n: int = 1) -> None:
        """Count something. label: of the counter, with this value; "" for none."""
        self._counts[name, label, value] += n

    def collect(self) -> Iterable[Metric]:
        found: dict[str, Metric] = {}
        for (name, label, value), count in list(self._counts.items()):
            metric = found.setdefault(name, Metric(name, name.removeprefix("te_").replace("_", " "), "unknown"))
            metric.add_sample(name, {label: value} if label else {}, count)
        return found.values()


class _Present:
    """What there is at the moment it is asked for."""

    def __init__(self, models: Sequence[ServedModel], sessions: Mapping[str, OwnedSessions]) -> None:
        self._models, self._sessions = models, sessions

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        gauges = {
            name: GaugeMetricFamily(name, words, labels=["model"])
            for name, words in (
                ("thalweg_queued_tokens", "Tokens that wait for the model."),
                ("thalweg_queued_texts", "Texts that wait for the model, or are in it."),
                ("thalweg_waiting_requests", "Requests that wait for room in the queue."),
                ("thalweg_rate", "Tokens a second, while there is work."),
                ("thalweg_state_bytes", "Bytes of the states of texts under way."),
                ("thalweg_documents_in_flight", "Long texts under way."),
                ("thalweg_sessions", "Sessions."),
                ("thalweg_session_bytes", "Bytes of sessions in memory."),
                ("thalweg_prefix_states", "States of prefixes."),
                ("thalweg_prefix_bytes", "Bytes of the states of prefixes."),
            )
        }
        hits = CounterMetricFamily("thalweg_prefix_hits", "Texts that began with a kept state.", labels=["model"])
        misses = CounterMetricFamily("thalweg_prefix_misses", "Texts that did not.", labels=["model"])
        queue = GaugeMetricFamily("te_queue_size", "Texts that wait.")
        queued = 0.0
        for model in self._models:
            progress, prefixes = model.thread.engine.progress, model.prefixes.states
            sessions = self._sessions[model.name]
            values = (
                model.admission.tokens, model.admission.texts, model.admission.waiting, model.thread.rate,
                progress.state_bytes, progress.in_flight, len(sessions), sessions.nbytes, len(prefixes),
                prefixes.nbytes,
            )  # fmt: skip
            for gauge, value in zip(gauges.values(), values, strict=True):
                gauge.add_metric([model.name], value)
            hits.add_metric([model.name], prefixes.hits)
            misses.add_metric([model.name], prefixes.misses)
            queued += progress.pending
        queue.add_metric([], queued)
        yield from (*gauges.values(), hits, misses, queue)
