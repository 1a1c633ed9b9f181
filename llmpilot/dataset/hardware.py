"""Whether a run was measured on the GPUs that its profile names, or on other hardware under that label."""

import re

from llmpilot.config import Gpu

_MEMORY = re.compile(r"^\d+GB$")


def runs_on(gpu: Gpu, hardware: str) -> bool:
    """Whether `hardware` (`2 x NVIDIA A100-SXM4-40GB`) is of the profile's type, and enough of it.

    Every word of the type's name must be there (an A10G is no A10); its memory only where the hardware's own
    name states one. Mixed GPUs must all be of the type.
    """
    words = _words(gpu.name)
    memory = {word for word in words if _MEMORY.match(word)}
    count = 0
    for part in hardware.split(", "):
        number, _, name = part.rpartition(" x ")
        theirs = _words(name)
        stated = {word for word in theirs if _MEMORY.match(word)}
        if not (words - memory <= theirs and (memory <= stated or not stated)):
            return False
        count += int(number) if number.isdigit() else 1
    return count >= gpu.count


def _words(name: str) -> set[str]:
    return {word for word in re.split(r"[^A-Z0-9]+", name.upper()) if word}
