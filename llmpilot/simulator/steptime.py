"""How long one step of the engine takes: decoding a batch once, or prefilling new requests.

Where the coefficients come from is `calibration`'s and `physics`'s business.
"""

from dataclasses import dataclass

from llmpilot.config import Gpu, Model
from llmpilot.sizing import GB, kv_bytes_on_profile

BANDWIDTH_REACHED = 0.8
DECODE_FLOPS_REACHED = 0.5
PREFILL_FLOPS_REACHED = 0.35


@dataclass(frozen=True)
class StepTimes:
    """Coefficients [ms] of one service's step times; see `decode_ms` and `prefill_ms` for their use."""

    dense_weights_ms: float
    """Reading, once a step, the weights that every token uses."""
    expert_weights_ms: float
    """Reading all routed experts' weights; a step reads the share that its tokens hit."""
    n_experts: int
    experts_per_token: int
    decode_ms_per_sequence: float
    decode_overhead_ms: float
    decode_overhead_ms_per_sequence: float
    """Sampling, detokenizing and bookkeeping on the host, after the GPU's work."""
    kv_ms_per_token: float
    communication_ms_per_token: float
    prefill_overhead_ms: float
    prefill_overhead_ms_per_request: float
    prefill_ms_per_token: float
    prefill_ms_per_token_squared: float
    """Attention: grows with the square of each request's input."""
    join_ms: float = 0.0
    join_ms_per_sequence: float = 0.0
    """Joining prefilled requests to the running batch: once, in the decode step after the prefill."""

    def weights_ms(self, tokens: int) -> float:
        """Return the time to read the weights that `tokens` tokens pass through.

        With k of E experts per token, a uniform router leaves an expert untouched by n tokens with
        probability (1 - k/E)^n.
        """
        if self.n_experts == 1:
            return self.dense_weights_ms
        untouched = (1.0 - self.experts_per_token / self.n_experts) ** tokens
        return self.dense_weights_ms + self.expert_weights_ms * (1.0 - untouched)

    def decode_ms(self, sequences: int) -> float:
        """Return the duration of one decode step without its KV reads: memory- or compute-bound."""
        work = max(self.weights_ms(sequences), self.decode_ms_per_sequence * sequences)
        per_sequence_ms = self.decode_overhead_ms_per_sequence + self.communication_ms_per_token
        return work + self.decode_overhead_ms + per_sequence_ms * sequences

    def prefill_ms(self, tokens: int, requests: int, tokens_squared: float) -> float:
        """Return the duration of prefilling `requests` requests of `tokens` input tokens together.

        `tokens_squared` is the sum of the squares of the single inputs' lengths.
        """
        work = max(self.weights_ms(tokens), self.prefill_ms_per_token * tokens)
        attention = self.prefill_ms_per_token_squared * tokens_squared
        overhead = self.prefill_overhead_ms + self.prefill_overhead_ms_per_request * requests
        return work + attention + overhead + self.communication_ms_per_token * tokens


def attention_times(model: Model, gpu: Gpu) -> tuple[float, float]:
    """Return the ms to read one KV token in decoding, and per squared input token in prefilling.

    Roofline (Williams et al., CACM 2009) at the shares of the datasheet's bandwidth and throughput that
    long contexts were taken to reach; the paper's requests are too short to measure them.
    """
    bytes_per_ms = gpu.count * gpu.bandwidth_gb_s * GB / 1e3 * BANDWIDTH_REACHED
    flops_per_ms = gpu.count * gpu.tflops_fp16 * 1e9 * PREFILL_FLOPS_REACHED
    layers = model.n_encoder_layers or model.n_layers
    kv_ms = kv_bytes_on_profile(model, gpu) / bytes_per_ms
    return kv_ms, 4.0 * layers * model.n_heads * model.head_dim / flops_per_ms


def expert_times(model: Model, gpu: Gpu) -> tuple[float, float]:
    """Return the ms to read all routed experts' weights, and to compute one sequence's decode step."""
    bytes_per_ms = gpu.count * gpu.bandwidth_gb_s * GB / 1e3 * BANDWIDTH_REACHED
    flops_per_ms = gpu.count * gpu.tflops_fp16 * 1e9 * DECODE_FLOPS_REACHED
    expert_ms = _routed_expert_parameters_b(model) * model.weight_bytes_per_parameter * 1e9 / bytes_per_ms
    return expert_ms, 2e9 * (model.active_parameters_b - model.encoder_parameters_b) / flops_per_ms


def _routed_expert_parameters_b(model: Model) -> float:
    """Solve active = shared + routed k/E and total = shared + routed for the routed experts' weights."""
    if model.n_experts == 1:
        return 0.0
    idle_share = 1.0 - model.experts_per_token / model.n_experts
    return (model.parameters_b - model.active_parameters_b) / idle_share if idle_share else 0.0
