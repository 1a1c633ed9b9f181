"""Task `emulate`: serve the simulated service in real time, as an OpenAI-compatible server."""

import asyncio
from contextlib import suppress
from typing import Any

import numpy as np
from omegaconf import DictConfig
from pydantic import ValidationError

from llmpilot import catalog
from llmpilot.config import build, parse, plain, whole_number
from llmpilot.console import note, say
from llmpilot.deploy.simulated import weight_that_fits
from llmpilot.emulator.options import Faults, FixedTiming, Options
from llmpilot.emulator.process import serve_until_signalled
from llmpilot.emulator.server import LOOPBACK, Emulator
from llmpilot.emulator.service import EmulatedService, describe
from llmpilot.errors import ConfigError
from llmpilot.sizing import require_fit
from llmpilot.workload import load_workload

SCALARS = ("host", "port", "speed", "api_key_env", "send_log", "prefix_cache_tokens")
DRAWS = 65_536
"""Output lengths that are drawn at the start; after so many requests they repeat."""


def run(cfg: DictConfig) -> dict[str, Any]:
    """Serve until Ctrl-C or SIGTERM; return what was served and how late its tokens were.

    Raises:
        ConfigError, DoesNotFitError: an impossible option, or a model that does not fit.
        PilotError: the port is taken, or the send log cannot be written.
    """
    options = _options(cfg)
    service = _service(cfg)
    emulator = Emulator(service, options)
    with suppress(KeyboardInterrupt):
        asyncio.run(serve_until_signalled(emulator, announce))
    result = summary(emulator)
    note(
        f"stopped after {result['requests']} requests"
        + (f"; sent to {options.send_log}" if options.send_log else "")
        + (f"; tokens were late by {_lateness(result)}" if result["tokens"] else "")
    )
    return result


def announce(emulator: Emulator) -> None:
    """Say first that this is an emulator, and where it is."""
    service, options = emulator.service, emulator.options
    pace = "real time" if options.speed == 1 else f"{options.speed:g} x real time"
    if options.fixed.on:
        pace = f"fixed TTFT {options.fixed.ttft_ms:g} ms and ITL {options.fixed.itl_ms:g} ms, {pace}"
    say(
        f"EMULATOR, no GPU and no weights: {emulator.url} answers as {service.model_id} "
        f"on {service.profile}, in {pace}. Ctrl-C stops it. It is {service.simulated_from}",
        style="bold yellow",
    )
    if options.host not in LOOPBACK:
        note(
            f"host={options.host}: whoever reaches this machine can use it, without encryption"
            + ("" if options.api_key_env else " and without a key (api_key_env=NAME asks for one)"),
            style="yellow",
        )


def summary(emulator: Emulator) -> dict[str, Any]:
    """Return what was served, as `result_file` holds it."""
    late_ms = emulator.lateness_ms()
    percentiles = np.percentile(late_ms, (50, 99)).round(4).tolist() if len(late_ms) else [None, None]
    return {
        "url": emulator.url,
        "model": emulator.service.model_id,
        "profile": emulator.service.profile,
        "measurement": "simulated",
        "requests": emulator.requests,
        "tokens": len(late_ms),
        "lateness_ms": {"p50": percentiles[0], "p99": percentiles[1]},
        "slips": emulator.slips,
    }


def _lateness(result: dict[str, Any]) -> str:
    late = result["lateness_ms"]
    slips = f"; too slow for its pace {result['slips']} times" if result["slips"] else ""
    return f"{late['p50']:.3f} ms (median), {late['p99']:.3f} ms (p99){slips}"


def _options(cfg: DictConfig) -> Options:
    """Return the options, whose keys stand at the root of the configuration."""
    given = {name: plain(cfg[name]) for name in SCALARS}
    fixed, faults = parse(FixedTiming, cfg.fixed, "fixed"), parse(Faults, cfg.faults, "faults")
    try:
        return Options(**given, fixed=fixed, faults=faults)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        cure = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{key} is not possible", given=first["input"], cure=cure) from None


def _service(cfg: DictConfig) -> EmulatedService:
    model, gpu = catalog.served_model(cfg), catalog.composed_gpu(cfg)
    engine = build(cfg.engine, "engine")
    if "simulated" not in engine.places:
        raise ConfigError(
            f"engine={engine.name} cannot be emulated: no simulation of it is known", cure="engine=tgis"
        )
    workload = load_workload(cfg.workload)
    engine = engine.with_cached_share(workload.cached_share)
    memory = engine.memory(model, gpu)
    require_fit(model, gpu, memory, heaviest_request_tokens=1)
    given = cfg.max_batch_weight
    if given is not None:
        given = whole_number(given, "max_batch_weight", least=2)
    weight = weight_that_fits(engine, model, gpu, given)
    lengths = workload.sample(DRAWS, cfg.seed).output_tokens
    return describe(model, gpu, engine, weight, tuple(lengths.tolist()))
