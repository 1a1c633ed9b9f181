"""A small serving engine on PyTorch alone, started by engine=transformers.

Random weights of a decoder's architecture, a KV cache in blocks, continuous batching under a max batch
weight, greedy sampling, OpenAI's API. Eager PyTorch, without CUDA graphs and fused kernels of its own: slower
than vLLM on the same GPU, so measure vLLM where it can be installed.

    shape      what the decoder looks like, from the facts of a model             (needs no torch)
    batching   who waits, who runs, under which weight                            (needs no torch)
    loop       the thread that prefills and decodes, and survives lack of memory  (needs no torch)
    decoder    the architecture: one forward for prompts, one for a step of all running requests
    cache      the KV cache, in blocks
    runner     one device: weights, cache, and the two forwards over requests
    answer     tokens of an answer onto the wire, in the formats of the emulator
    site       the model on the network: what it refuses, and tokens on their way to the clients
"""
