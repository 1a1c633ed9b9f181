"""Random words from a seed. Only raw PCG64 words: numpy promises their stream, not that of its Generator."""

from typing import Any

import numpy as np

from llmpilot.errors import ConfigError


def random_words(seed: Any, *stream: int) -> np.random.PCG64:
    """Return the source whose `random_raw` gives 64-bit words; ConfigError if `seed` is no whole number.

    A `stream` of the same seed, named by one number or more, has nothing to do with the others.
    """
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ConfigError("seed is not possible", given=seed, cure="set seed=<whole number from 0 on>")
    return np.random.PCG64([int(seed), *stream] if stream else int(seed))
