"""What /metrics tells, in Prometheus' text form."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

LATENCY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        disable_created_metrics()
        made = self.registry = CollectorRegistry()
        self.requests = Counter("peftrun_requests", "Requests answered", ["endpoint", "model", "status"], registry=made)
        self.prompt_tokens = Counter("peftrun_prompt_tokens", "Tokens of prompts", ["model"], registry=made)
        self.written_tokens = Counter("peftrun_generated_tokens", "Tokens written", ["model"], registry=made)
        self.waiting = Gauge("peftrun_requests_waiting", "Answers that wait for their turn", registry=made)
        self.running = Gauge("peftrun_requests_running", "Answers that are being computed", registry=made)
        self.adapters = Gauge("peftrun_adapters", "Adapters served under a name", registry=made)
        self.batch = Histogram("peftrun_batch_rows", "Rows of a step", registry=made, buckets=BATCH_SIZE_BUCKETS)
        self.seconds = Histogram(
            "peftrun_request_seconds",
            "From a request to its last token",
            ["model"],
            registry=made,
            buckets=LATENCY_BUCKETS,
        )
        self.first_token = Histogram(
            "peftrun_time_to_first_token_seconds", "From a request to its first token", ["model"], registry=made, buckets=LATENCY_BUCKETS
        )  # fmt: skip

    def render_text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)
