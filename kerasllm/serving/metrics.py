"""What Prometheus reads: requests, tokens, times, and what the engines say of themselves."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

GAUGES = {
    "running": "Answers that have a slot.",
    "waiting": "Answers that wait for one.",
    "cache_use": "Part of the cache that holds tokens, from 0 to 1.",
}
COUNTERS = {
    "prefix_hits": "Tokens of prompts that were found in the prefix cache.",
    "prefix_misses": "Tokens of prompts that had to be read.",
}


class Metrics:
    """The metrics of one server.

    Args:
        models: `kerasllm.serving.supervisor.Models`.
    """

    def __init__(self, models):
        self.models, self.registry = models, CollectorRegistry()
        made = {"registry": self.registry, "namespace": "kerasllm"}
        times = {**made, "buckets": SECONDS}
        self.requests = Counter("requests", "Requests by path and status.", ["path", "status"], **made)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts.", ["model"], **made)
        self.completion_tokens = Counter("completion_tokens", "Tokens of answers.", ["model"], **made)
        self.first = Histogram("time_to_first_token_seconds", "Until the first token.", ["model"], **times)
        self.between = Histogram("inter_token_seconds", "From a token to the next.", ["model"], **times)
        self.registry.register(self)

    def collect(self) -> Iterator:
        """Asked by the registry at each scrape."""

        def made(kind, name, text):
            return kind(f"kerasllm_{name}", text, labels=["model"])

        ready = made(GaugeMetricFamily, "ready", "Whether the model is loaded.")
        restarts = made(CounterMetricFamily, "restarts", "Times that its process was started again.")
        pending = made(GaugeMetricFamily, "pending", "Answers that were asked for and are not whole.")
        said = {name: made(GaugeMetricFamily, name, text) for name, text in GAUGES.items()}
        said |= {name: made(CounterMetricFamily, name, text) for name, text in COUNTERS.items()}
        for model, process in self.models.processes.items():
            ready.add_metric([model], float(process.ready))
            restarts.add_metric([model], process.restarts)
            pending.add_metric([model], process.pending)
            for name, family in said.items():
                family.add_metric([model], process.stats.get(name, 0))
        yield from (ready, restarts, pending, *said.values())

    def text(self) -> bytes:
        return generate_latest(self.registry)
