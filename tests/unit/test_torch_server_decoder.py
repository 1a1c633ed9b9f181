"""The decoder of engine=transformers: batched, cached decoding must say what one plain forward says."""

from typing import Any

import pytest

from llmpilot.engine.torch_server.batching import Job
from llmpilot.engine.torch_server.loop import OutOfMemoryError
from llmpilot.engine.torch_server.shape import DecoderShape

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
cache = pytest.importorskip("llmpilot.engine.torch_server.cache")
runners = pytest.importorskip("llmpilot.engine.torch_server.runner")

CPU = torch.device("cpu")
ATTENTION = {"multi_head": (4, 4), "grouped": (4, 2), "multi_query": (4, 1)}


def shape(heads: int, kv_heads: int, gated: bool = True, tied: bool = False) -> DecoderShape:
    return DecoderShape(3, 64, heads, kv_heads, 16, 96, 512, gated, tied)


def runner(of: DecoderShape, weight: int | None = 600, requests: int = 16) -> Any:
    given = runners.Settings(weight, 300, requests, 256, memory_utilization=0.01)
    return runners.DecoderRunner(of, given, device=CPU, dtype=torch.float32)


def plain(model: Any, prompt: list[int], count: int) -> list[int]:
    """Return the greedy continuation by one whole forward a token: no cache, no batch."""
    ids = list(prompt)
    for _ in range(count):
        with torch.inference_mode():
            tokens = torch.tensor(ids)
            logits = model.decoder.prefill(tokens, torch.arange(len(ids)), [len(ids)], None, None)
        ids.append(int(logits[0].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("gated", [True, False])
def test_batched_cached_decoding_is_the_plain_forward(attention: str, gated: bool) -> None:
    model = runner(shape(*ATTENTION[attention], gated=gated, tied=not gated))
    random = torch.Generator().manual_seed(7)
    # Lengths on both sides of blocks, and far enough apart for several groups.
    lengths = [1, 3, cache.BLOCK_TOKENS - 1, cache.BLOCK_TOKENS, cache.BLOCK_TOKENS + 1, 70, 150]
    prompts = [torch.randint(0, 512, (n,), generator=random).tolist() for n in lengths]
    jobs = [Job(prompt, 12) for prompt in prompts]
    said: dict[int, list[int]] = {id(job): [] for job in jobs}
    running: list[Job] = []
    waiting = list(jobs)
    while waiting or running:
        # Two join at a time, while the others are in the middle of their answers.
        joining, waiting = waiting[:2], waiting[2:]
        for step, batch in (("prefill", joining), ("decode", running + joining)):
            if not batch:
                continue
            for job, token in zip(batch, getattr(model, step)(batch), strict=True):
                job.made, job.last_token = job.made + 1, token
                said[id(job)].append(token)
        running = [job for job in running + joining if job.made < job.output_tokens]
        for job in jobs:
            if job.made >= job.output_tokens:
                model.release(job)
    for job, prompt in zip(jobs, prompts, strict=True):
        assert said[id(job)][:12] == plain(model, prompt, 12)
    assert len({tuple(tokens) for tokens in said.values()}) == len(jobs)


def test_weights_are_as_many_as_the_shape_says_and_the_same_for_the_same_seed() -> None:
    of = shape(4, 2)
    one, two = runner(of), runner(of)
    layers = [matrix for layer in one.decoder.layers for matrix in vars(layer).values()]
    others = [one.decoder.embedding, one.decoder.head, one.decoder.norm]
    assert sum(matrix.numel() for matrix in layers + others) == of.parameters
    assert torch.equal(one.decoder.layers[2].up, two.decoder.layers[2].up)


def test_blocks_hold_every_request_of_the_weight_and_come_back() -> None:
    blocks = cache.KvBlocks(
        shape(4, 2), max_tokens=100, max_requests=10, max_request_tokens=40, device=CPU, dtype=torch.float32
    )
    free = blocks.free_tokens
    assert free == cache.blocks_for(100, 10) * cache.BLOCK_TOKENS
    jobs = [Job([0] * 9, 1) for _ in range(10)]  # the weight is full, and so are the rows
    for job in jobs:
        blocks.reserve(job)
    taken = [block for job in jobs for block in job.blocks]
    assert len(taken) == len(set(taken))
    for job in jobs:
        blocks.release(job)
        blocks.release(job)
    assert blocks.free_tokens == free


def test_without_a_weight_it_takes_what_can_be_used_at_most() -> None:
    assert runner(shape(4, 2), weight=None, requests=3).max_batch_weight == 3 * 300


def test_lack_of_memory_is_named() -> None:
    with pytest.raises(OutOfMemoryError, match=r"out of memory: .*can't allocate memory"):
        runner(shape(4, 2), weight=10**13)
    tight = runners.Settings(None, 300, 4, 256, memory_utilization=1e-12)
    with pytest.raises(OutOfMemoryError, match="room for 0 tokens of KV cache"):
        runners.DecoderRunner(shape(4, 2), tight, device=CPU, dtype=torch.float32)
