"""How long one step of the engine takes: decoding a batch once, or prefilling new requests.

Roofline physics from the facts of the model and the GPU profile. Knows nothing about queues or clocks.
"""

from dataclasses import dataclass

from llmpilot.config import Facts, Gpu, Model, NonNegative, Share
from llmpilot.sizing import GB


class Efficiency(Facts):
    """How far real engines stay behind datasheets, and what they add per layer or request.

    The defaults lie near what the published LLM-Pilot measurements of TGIS show for one user; they are
    the same for all models and GPUs.
    """

    bandwidth: Share = 0.8
    decode_flops: Share = 0.5
    prefill_flops: Share = 0.35
    link: Share = 0.6
    decode_overhead_ms_per_layer: NonNegative = 0.1
    decode_overhead_ms_per_sequence: NonNegative = 0.3
    prefill_overhead_ms_per_layer: NonNegative = 0.3
    prefill_overhead_ms_per_request: NonNegative = 2.0
    allreduce_latency_ms: NonNegative = 0.02


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


def step_times_from_facts(model: Model, gpu: Gpu, efficiency: Efficiency) -> StepTimes:
    """Return a service's step times from datasheet facts alone (roofline; Williams et al., CACM 2009).

    Decoding reads every active weight once a step; prefilling computes 2 FLOPs per active parameter and
    token; tensor parallelism adds two all-reduces of d_model fp16 values per layer, in a ring.
    """
    n = gpu.count
    bytes_per_ms = n * gpu.bandwidth_gb_s * GB / 1e3 * efficiency.bandwidth
    flops_per_ms = n * gpu.tflops_fp16 * 1e12 / 1e3

    decoder_b = model.parameters_b - model.encoder_parameters_b
    expert_b = _routed_expert_parameters_b(model)
    weight_bytes = model.weight_bytes_per_parameter * 1e9
    decode_flops = 2e9 * (model.active_parameters_b - model.encoder_parameters_b)
    # An encoder-decoder sends the input through its encoder; its decoder starts from one token.
    prefill_flops = 2e9 * (model.encoder_parameters_b or model.active_parameters_b)
    attention_layers = model.n_encoder_layers or model.n_layers
    attention_flops = 4.0 * attention_layers * model.n_heads * model.head_dim

    layers = model.n_layers
    allreduces = 2 * layers
    latency_ms = allreduces * efficiency.allreduce_latency_ms * (n - 1).bit_length()
    link_bytes_per_ms = gpu.link_gb_s / 2 * GB / 1e3 * efficiency.link
    ring_bytes = allreduces * model.d_model * 2 * 2 * (n - 1) / n
    return StepTimes(
        dense_weights_ms=(decoder_b - expert_b) * weight_bytes / bytes_per_ms,
        expert_weights_ms=expert_b * weight_bytes / bytes_per_ms,
        n_experts=model.n_experts,
        experts_per_token=model.experts_per_token,
        decode_ms_per_sequence=decode_flops / (flops_per_ms * efficiency.decode_flops),
        decode_overhead_ms=layers * efficiency.decode_overhead_ms_per_layer + latency_ms,
        decode_overhead_ms_per_sequence=efficiency.decode_overhead_ms_per_sequence,
        kv_ms_per_token=model.kv_bytes_per_token * max(1.0, n / model.kv_shards) / bytes_per_ms,
        communication_ms_per_token=ring_bytes / link_bytes_per_ms,
        prefill_overhead_ms=(layers + model.n_encoder_layers) * efficiency.prefill_overhead_ms_per_layer + latency_ms,
        prefill_overhead_ms_per_request=efficiency.prefill_overhead_ms_per_request,
        prefill_ms_per_token=prefill_flops / (flops_per_ms * efficiency.prefill_flops),
        prefill_ms_per_token_squared=attention_flops / (flops_per_ms * efficiency.prefill_flops),
    )


def _routed_expert_parameters_b(model: Model) -> float:
    """Solve active = shared + routed k/E and total = shared + routed for the routed experts' weights."""
    if model.n_experts == 1:
        return 0.0
    idle_share = 1.0 - model.experts_per_token / model.n_experts
    return (model.parameters_b - model.active_parameters_b) / idle_share if idle_share else 0.0
