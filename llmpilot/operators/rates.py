"""What a GPU's datasheet says about its speed, per number format. Knows no operator and no measurement."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llmpilot.architecture import BYTES
from llmpilot.config import Gpu

_FP8_UNITS = {"ada", "hopper", "blackwell", "cdna3", "cdna4"}
_FP4_UNITS = {"blackwell", "cdna4"}
_INT8_UNITS = {"turing", "ampere", *_FP8_UNITS}

Numbers = float | NDArray[np.float64]
"""A number, or an array of them."""


@dataclass(frozen=True)
class Rates:
    """Datasheet rates of one GPU in bytes and operations per millisecond."""

    gpu: Gpu

    @cached_property
    def bandwidth(self) -> float:
        """Return the memory bandwidth [bytes per ms]."""
        return self.gpu.bandwidth_gb_s * 1e6

    def compute(self, number_format: str) -> float:
        """Return the dense tensor rate for matrices of this format [operations per ms].

        A format that the hardware has no units for is stored in it and multiplied as bf16 (weight-only).
        Where the catalogue leaves a rate out, it is twice the next wider format's, as on all GPUs so far.
        """
        if not self.computes_in(number_format):
            return self.gpu.tflops_fp16 * 1e9
        fp8 = self.gpu.tflops_fp8 or 2 * self.gpu.tflops_fp16
        if number_format in ("nvfp4", "mxfp4"):
            return (self.gpu.tflops_fp4 or 2 * fp8) * 1e9
        return fp8 * 1e9

    def computes_in(self, number_format: str) -> bool:
        """Whether the hardware multiplies in this format, rather than in bf16 after unpacking."""
        match number_format:
            case "fp8" | "fp8_block":
                return self.gpu.tflops_fp8 is not None or self.gpu.architecture in _FP8_UNITS
            case "nvfp4" | "mxfp4":
                return self.gpu.tflops_fp4 is not None or self.gpu.architecture in _FP4_UNITS
            case "int8":
                return self.gpu.architecture in _INT8_UNITS
            case _:
                return False

    def link(self, gpus: Numbers) -> Numbers:
        """Return the bytes per ms that a GPU sends to `gpus - 1` others, in one direction.

        A switch or a bus gives a GPU its whole rate whatever their number; in AMD's full mesh every other
        GPU has a link of its own (`link_gb_s`, as in the catalogue).
        """
        one = self.gpu.link_gb_s * 1e6 / 2
        return one * (gpus - 1) if self.gpu.link == "infinity-fabric" else one


def bytes_of(number_format: str) -> float:
    """Return the bytes of one value of this format, its share of the scales included."""
    return BYTES[number_format]
