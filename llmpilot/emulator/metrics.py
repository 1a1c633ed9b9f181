"""What /metrics answers: vLLM's names and units, in Prometheus' text format."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FINISHED = ("stop", "length", "abort", "error")
TTFT_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
)
ITL_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
E2E_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class Histogram:
    """Counts of values up to each bound, and their sum."""

    def __init__(self, name: str, about: str, bounds: Sequence[float]) -> None:
        self.name, self.about, self.bounds = name, about, bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def observe_all(self, values: Iterable[float]) -> None:
        """Count values."""
        for value in values:
            self.observe(value)

    def lines(self, labels: str) -> list[str]:
        """Return the histogram in Prometheus' text format."""
        lines, below = _heading(self.name, self.about, "histogram"), 0
        for bound, count in zip((*(f"{bound:g}" for bound in self.bounds), "+Inf"), self.counts, strict=True):
            below += count
            lines.append(f'{self.name}_bucket{{{labels},le="{bound}"}} {below}')
        return [
            *lines,
            f"{self.name}_sum{{{labels}}} {self.sum:.9g}",
            f"{self.name}_count{{{labels}}} {below}",
        ]


class Metrics:
    """Everything counted since the start."""

    def __init__(self, model_id: str, kv_capacity_tokens: int) -> None:
        self._labels = f'engine="0",model_name="{_escaped(model_id)}"'
        self._kv_capacity_tokens = kv_capacity_tokens
        self.prompt_tokens = self.generation_tokens = 0
        self.finished = dict.fromkeys(FINISHED, 0)
        self.ttft = Histogram("vllm:time_to_first_token_seconds", "Time to first token.", TTFT_S)
        self.itl = Histogram(
            "vllm:inter_token_latency_seconds", "Time between two tokens of a request.", ITL_S
        )
        self.e2e = Histogram(
            "vllm:e2e_request_latency_seconds", "Time from arrival to the last token.", E2E_S
        )
        self.inputs = Histogram("vllm:request_prompt_tokens", "Input tokens of a request.", TOKENS)
        self.outputs = Histogram("vllm:request_generation_tokens", "Output tokens of a request.", TOKENS)

    def render(
        self,
        running: int,
        waiting: int,
        kv_share: float,
        generating: int,
        *,
        preemptions: int,
        slips: int | None,
    ) -> str:
        """Return all of it as text; `generating` counts the tokens of requests that have not ended yet.

        `slips` None: there is no pace to keep, and nothing is said of it.
        """
        labels = self._labels
        lines: list[str] = []
        for name, about, kind, value in (
            ("vllm:num_requests_running", "Sequences in the running batch.", "gauge", running),
            ("vllm:num_requests_waiting", "Sequences waiting for a place in it.", "gauge", waiting),
            ("vllm:kv_cache_usage_perc", "Share of the KV cache in use; 1 is all of it.", "gauge", kv_share),
            ("vllm:num_preemptions_total", "Sequences that lost their place.", "counter", preemptions),
            ("vllm:prompt_tokens_total", "Input tokens processed.", "counter", self.prompt_tokens),
            (
                "vllm:generation_tokens_total",
                "Output tokens generated.",
                "counter",
                self.generation_tokens + generating,
            ),
            (
                "llmpilot_emulator:slips_total",
                "How often the machine was too slow for the emulated pace.",
                "counter",
                slips,
            ),
        ):
            if value is not None:
                lines += [*_heading(name, about, kind), f"{name}{{{labels}}} {value}"]
        lines += _heading("vllm:request_success_total", "Requests that ended, by reason.", "counter")
        for reason, count in self.finished.items():
            lines.append(f'vllm:request_success_total{{{labels},finished_reason="{reason}"}} {count}')
        lines += _heading("vllm:cache_config_info", "The KV cache.", "gauge")
        cache = f'block_size="1",num_gpu_blocks="{self._kv_capacity_tokens}"'
        lines.append(f"vllm:cache_config_info{{{labels},{cache}}} 1")
        for histogram in (self.ttft, self.itl, self.e2e, self.inputs, self.outputs):
            lines += histogram.lines(labels)
        return "\n".join(lines) + "\n"


def _heading(name: str, about: str, kind: str) -> list[str]:
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
