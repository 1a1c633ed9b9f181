"""The service that an emulator pretends to be: which model, how fast, how much it holds."""

from dataclasses import dataclass

from llmpilot import catalog
from llmpilot.config import Gpu, Model
from llmpilot.emulator.tokens import SMALLEST_VOCABULARY
from llmpilot.engine.inference import SimulatedAs
from llmpilot.engine.tgis import TgisEngine
from llmpilot.errors import ConfigError
from llmpilot.simulator import VirtualService

EXAMPLE_OUTPUT_LENGTHS = (16, 64, 32, 128)


@dataclass(frozen=True)
class EmulatedService:
    """What the emulator must know of a service.

    A request may hold `max_model_tokens`, input and output together. `output_lengths` are taken in turn
    by requests that do not fix their own length. `aliases` are accepted as model names beside `model_id`.
    """

    model_id: str
    aliases: tuple[str, ...]
    profile: str
    service: VirtualService
    vocabulary_size: int
    max_model_tokens: int
    output_lengths: tuple[int, ...]
    simulated_from: str = ""
    """In words: which engine, from which data."""


def describe(
    model: Model, gpu: Gpu, engine: SimulatedAs, max_batch_weight: int, output_lengths: tuple[int, ...]
) -> EmulatedService:
    """Return the service of one model on one GPU profile under one max batch weight.

    Raises:
        ConfigError: the model's vocabulary is too small for the texts that the emulator generates.
    """
    if model.vocabulary_size < SMALLEST_VOCABULARY:
        raise ConfigError(
            f"model.vocabulary_size is too small: the emulator's tokens need {SMALLEST_VOCABULARY}",
            given=model.vocabulary_size,
            cure="take a larger model.vocabulary_size",
        )
    service = engine.service(model, gpu, max_batch_weight)
    return EmulatedService(
        model_id=model.hf_id or model.name,
        aliases=(model.name,),
        profile=gpu.label,
        service=service,
        vocabulary_size=model.vocabulary_size,
        max_model_tokens=min(model.max_positions or max_batch_weight, max_batch_weight),
        output_lengths=output_lengths,
        simulated_from=engine.simulated_from(model, gpu),
    )


def example_service(model: str = "starcoder", gpu: str = "a100") -> EmulatedService:
    """Return a service of the catalogue under the engine's defaults: to test and to calibrate clients."""
    facts, profile, engine = catalog.models([model])[model], catalog.gpus([gpu])[gpu], TgisEngine()
    weight = engine.default_max_batch_weight(facts, profile)
    return describe(facts, profile, engine, weight, EXAMPLE_OUTPUT_LENGTHS)
