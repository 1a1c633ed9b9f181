"""Which option of the catalogue a Hugging Face id names: its own, another checkpoint's, or a repackaging's.

Repackagings are told by the end of their names (`-FP8`, `-NVFP4`, `-AWQ` ...), whoever made them.
"""

import re
from collections.abc import Iterable

from llmpilot.architecture import Precision
from llmpilot.config import Model

ENDS: dict[str, Precision | None] = {
    "fp8": "fp8",
    "nvfp4": "nvfp4",
    "fp4": "nvfp4",
    "mxfp4": "mxfp4",
    "awq": "int4",
    "gptq": "int4",
    "int4": "int4",
    "w4a16": "int4",
    "4bit": "int4",
    "bf16": "bf16",
    # which say nothing of the weights' precision by themselves
    "kv": None,
    "dynamic": None,
    "block": None,
    "static": None,
    "pertensor": None,
    "quantized": None,
    "mse": None,
    "hf": None,
    "v2": None,
}
"""Last parts of a repackaging's name, and the precision that they say."""
LIKE = ("instruct", "chat", "it", "base")
"""Last parts of a name that do not change what a model costs."""


def option_of(hf_id: str, models: Iterable[tuple[str, Model]]) -> tuple[str, Precision | None] | None:
    """Return the option that a Hugging Face id names and the precision it is repackaged in, or None.

    Upper and lower case are alike. A precision of None is that of the option's own checkpoint.
    """
    wanted = hf_id.strip().lower()
    whole: dict[str, str] = {}
    names: dict[str, str] = {}
    cores: dict[str, str] = {}
    for option, model in models:
        for known in (model.hf_id.lower(), *(alias.lower() for alias in model.aliases)):
            whole.setdefault(known, option)
            name, _ = _without_ends(known)
            names.setdefault(name, option)
            cores.setdefault(_core(name), option)
    if wanted in whole:
        return whole[wanted], None
    if wanted.count("/") != 1:
        return None
    name, precision = _without_ends(wanted)
    found = names.get(name) or cores.get(_core(name))
    return None if found is None else (found, precision)


def _without_ends(hf_id: str) -> tuple[str, Precision | None]:
    """Return the name without the organization and without what says how it is quantized; and that."""
    parts = re.split(r"[-_.](?=[a-z])|-(?=4bit)", hf_id.rpartition("/")[2].lower())
    precision: Precision | None = None
    while len(parts) > 1 and parts[-1] in ENDS:
        precision = ENDS[parts[-1]] or precision
        parts.pop()
    return "-".join(parts), precision


def _core(name: str) -> str:
    parts = name.removeprefix("meta-").removeprefix("nvidia-").split("-")
    while len(parts) > 1 and parts[-1] in LIKE:
        parts.pop()
    return "-".join(parts)
