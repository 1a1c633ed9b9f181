"""`python -m llmpilot.engine.torch_server ...`: make the weights, try them out, and serve until signalled."""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from typing import NoReturn

from llmpilot.engine.torch_server.shape import DecoderShape
from llmpilot.engine.torch_server.site import Served, Site
from llmpilot.errors import PilotError

NO_TORCH = "PyTorch is not installed in this environment: pip install torch (2.5 or newer)"


def main(arguments: list[str]) -> int:
    """Serve; return the exit code."""
    options = _options(arguments)
    try:
        import torch
    except ImportError as error:
        _stop(f"{NO_TORCH} ({error})")
    from llmpilot.engine.torch_server.loop import OutOfMemoryError
    from llmpilot.engine.torch_server.runner import DecoderRunner, Settings

    if options.threads:
        torch.set_num_threads(options.threads)
    has_cuda = torch.cuda.is_available()
    if options.device == "cuda" and not has_cuda:
        _stop(
            "engine.device=cuda, and PyTorch finds no CUDA device: see nvidia-smi, or take engine.device=cpu"
        )
    device = torch.device("cpu" if options.device == "cpu" or not has_cuda else "cuda")
    name = options.dtype
    if device.type == "cpu" and options.dtype_is_default:
        name = "float32"
    shape = DecoderShape(**json.loads(options.shape))
    said = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    _say(f"PyTorch {torch.__version__} on {said}: {shape.parameters / 1e9:.4g}e9 random weights in {name}")
    started_s = time.monotonic()
    settings = Settings(
        max_batch_weight=options.max_batch_weight,
        max_request_tokens=options.max_model_len,
        max_requests=options.max_num_seqs,
        max_prefill_tokens=options.max_prefill_tokens,
        memory_utilization=options.memory_utilization,
        seed=options.seed,
    )
    try:
        runner = DecoderRunner(shape, settings, device=device, dtype=getattr(torch, name))
    except OutOfMemoryError as error:
        _stop(str(error))
    _say(
        f"max batch weight {runner.max_batch_weight:,} tokens; ready {time.monotonic() - started_s:.1f} s on"
    )
    served = Served(
        model_id=options.served_model_name,
        vocabulary_size=shape.vocabulary_size,
        max_request_tokens=options.max_model_len,
        max_batch_weight=runner.max_batch_weight,
        max_requests=options.max_num_seqs,
        max_prefill_tokens=options.max_prefill_tokens,
    )
    # The event loop must not wait long for the model's thread to let go of the interpreter.
    sys.setswitchinterval(0.0005)
    return asyncio.run(_serve(Site(served, runner), options.host, options.port))


async def _serve(site: Site, host: str, port: int) -> int:
    try:
        await site.start(host, port)
    except PilotError as error:
        _stop(error.wrong.lower())
    loop, signalled = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled.set)
    _say(f"listening on {site.url}")
    site.ended.add_done_callback(lambda _: signalled.set())
    await signalled.wait()
    await site.stop()
    return 1 if site.ended.done() else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m llmpilot.engine.torch_server", description=__doc__)
    parser.add_argument("--shape", required=True, help="a DecoderShape as JSON")
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--dtype-is-default", action="store_true", help="float32 on a CPU")
    parser.add_argument("--threads", type=int, help="of a CPU")
    parser.add_argument("--max-batch-weight", type=int, help="tokens; default: what the memory holds")
    parser.add_argument("--max-model-len", type=int, required=True, help="tokens of the longest request")
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-prefill-tokens", type=int, default=4096)
    parser.add_argument("--memory-utilization", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def _say(line: str) -> None:
    print(line, flush=True)


def _stop(line: str) -> NoReturn:
    print(f"error: {line}", file=sys.stderr, flush=True)
    sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
