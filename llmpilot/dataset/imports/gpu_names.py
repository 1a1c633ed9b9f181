"""GPU types as drivers and clusters name them: `NVIDIA-H100-80GB-HBM3`, `NVIDIA A100-SXM4-40GB`."""

import re

from llmpilot import catalog
from llmpilot.dataset import measured_words

BESIDE_THE_TYPE = (
    r"nvidia|amd|instinct|tesla|geforce|tensor core gpu|blackwell|server edition|oam|sxm\d?|hbm\d?e?"
)
MEMORY_DIFFERS = 0.15
"""A driver's memory and a datasheet's are the same within this share."""


def gpu_named(word: str) -> str:
    """Return the option of the GPU catalogue that a driver's name means, or the word as it is.

    What the name says of the board counts (an H100 PCIe is no H100 SXM), and so does its memory.
    """
    plain = re.sub(r"[^a-z0-9]+", " ", word.lower())
    parts = re.sub(rf"\b(?:{BESIDE_THE_TYPE})\b", " ", plain).split()
    sizes = [float(part[:-2]) for part in parts if re.fullmatch(r"\d+gb", part)]
    kind = "-".join(part for part in parts if not re.fullmatch(r"\d+gb", part))
    known = catalog.gpus()
    for name in ("-".join(parts), kind):
        option = measured_words.gpu(name)
        gpu = known.get(option)
        if gpu is not None and all(abs(gpu.memory_gb / size - 1) < MEMORY_DIFFERS for size in sizes):
            return option
    return word
