"""What a server has done and does, for Prometheus: ``/metrics``.

The names are those of llama.cpp's server with a prefix of ours. Promises that the number of series
is bounded, whatever is asked. Knows no protocol.
"""

from __future__ import annotations

from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from ..vision.seen import SEEN
from .state import Served, Server

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_PREFIX = "llama4:"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Counts what a server answers, from now on.

    Args:
        paths: those that are told apart; all others are one.
    """

    def __init__(self, server: Server, paths: Collection[str]) -> None:
        self._server, self._paths = server, frozenset(paths)
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            f"{_PREFIX}requests",
            "Requests that were answered, with an error or without.",
            ("path", "status"),
            registry=self._registry,
        )
        self._vanished = self._counter("requests_vanished", "Requests whose client hung up.")
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts that were read.")
        self._cached_tokens = self._counter(
            "prompt_tokens_cached", "Tokens of prompts that did not have to be read."
        )
        self._prompt_seconds = self._counter("prompt_seconds", "Seconds of reading prompts.")
        self._tokens = self._counter("tokens_predicted", "Tokens of answers.")
        self._token_seconds = self._counter("tokens_predicted_seconds", "Seconds of answering.")
        self._first = self._histogram("first_token_seconds", "Until the first piece of a stream.")
        self._seconds = self._histogram("request_seconds", "Until the last byte of an answer.")
        self._add_gauges()
        server.observers.append(self._observe)

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(f"{_PREFIX}{name}", about, registry=self._registry)

    def _histogram(self, name: str, about: str) -> Histogram:
        return Histogram(f"{_PREFIX}{name}", about, registry=self._registry, buckets=_SECONDS)

    def _add_gauges(self) -> None:
        """What is so when it is asked for."""
        for name, about, value in (
            ("requests_processing", "Requests that are being answered.", self._processing),
            ("requests_deferred", "Requests that wait.", self._deferred),
            ("kv_cache_tokens", "Tokens that the KV cache holds.", self._held),
            ("kv_cache_usage_ratio", "The part of the KV cache that is used, from 0 to 1.",
             self._held_ratio),
            ("slots", "Requests that can be answered at the same time.", self._n_slots),
            ("slots_used", "Of these, how many are.", self._used_slots),
            ("model_loaded", "Whether the model is in memory.", self._is_loaded),
            ("states_bytes", "Bytes of states of sequences in main memory: --cache-ram at most.",
             self._states_bytes),
            ("picture_tiles_bytes", "Bytes of pictures that are kept as the model sees them.",
             lambda: SEEN.nbytes),
            ("responses_stored", "Responses that are kept.", lambda: len(self._server.responses)),
            ("responses_stored_bytes", "About the bytes that these take.",
             lambda: self._server.responses.nbytes),
        ):  # fmt: skip
            gauge = Gauge(f"{_PREFIX}{name}", about, registry=self._registry)
            gauge.set_function(value)

    def _observe(self, record: Served) -> None:
        path = record.path if record.path in self._paths else "other"
        self._requests.labels(path, str(record.status)).inc()
        self._vanished.inc(record.vanished)
        self._prompt_tokens.inc(record.prompt_tokens - record.cached_tokens)
        self._cached_tokens.inc(record.cached_tokens)
        self._prompt_seconds.inc(record.prefill_seconds)
        self._tokens.inc(record.completion_tokens)
        self._token_seconds.inc(record.decode_seconds)
        if record.first_seconds:
            self._first.observe(record.first_seconds)
        if record.completion_tokens:
            self._seconds.observe(record.seconds)

    def _processing(self) -> float:
        return min(self._server.queue.in_flight, self._n_slots())

    def _deferred(self) -> float:
        return max(self._server.queue.in_flight - self._n_slots(), 0)

    def _n_slots(self) -> float:
        return 0 if self._server.facts is None else self._server.facts.n_parallel

    def _sequences(self) -> list[tuple[int, bool]]:
        loaded = self._server.models.loaded
        return [] if loaded is None else loaded.model.engine.sequences

    def _held(self) -> float:
        return sum(n_tokens for n_tokens, _ in self._sequences())

    def _held_ratio(self) -> float:
        facts = self._server.facts
        return 0.0 if facts is None else self._held() / (facts.n_ctx * facts.n_parallel)

    def _used_slots(self) -> float:
        return sum(is_used for _, is_used in self._sequences())

    def _states_bytes(self) -> float:
        loaded = self._server.models.loaded
        return 0 if loaded is None else loaded.model.engine.cache.nbytes

    def _is_loaded(self) -> float:
        return self._server.models.loaded is not None
