"""What /metrics reports, in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

LATENCY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)  # seconds
BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # rows


class Metrics:
    """Counters of one server, in a registry of their own: several servers may run in one process."""

    def __init__(self) -> None:
        disable_created_metrics()
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "peftrun_requests", "Requests answered", ["endpoint", "model", "status"], registry=registry
        )
        self.prompt_tokens = Counter("peftrun_prompt_tokens", "Tokens of prompts", ["model"], registry=registry)
        self.written_tokens = Counter("peftrun_generated_tokens", "Tokens generated", ["model"], registry=registry)
        self.waiting = Gauge("peftrun_requests_waiting", "Answers in the queue", registry=registry)
        self.running = Gauge("peftrun_requests_running", "Answers that are being computed", registry=registry)
        self.adapters = Gauge("peftrun_adapters", "Adapters that are served", registry=registry)
        self.batch = Histogram("peftrun_batch_rows", "Rows of a step", registry=registry, buckets=BATCH_SIZE_BUCKETS)
        self.seconds = Histogram(
            "peftrun_request_seconds", "From a request to its last token", ["model"], registry=registry, buckets=LATENCY_BUCKETS
        )  # fmt: skip
        self.first_token = Histogram(
            "peftrun_time_to_first_token_seconds", "From a request to its first token", ["model"], registry=registry, buckets=LATENCY_BUCKETS
        )  # fmt: skip

    def render_text(self) -> bytes:
        """All metrics as the body of the response."""
        return generate_latest(self.registry)
