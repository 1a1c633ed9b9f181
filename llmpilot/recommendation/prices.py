"""The GPU profiles that can be bought at the prices of one list, and a remark on those that cannot."""

from collections.abc import Sequence
from pathlib import Path

from llmpilot import catalog
from llmpilot.config import Gpu
from llmpilot.console import note
from llmpilot.errors import ConfigError
from llmpilot.prices import PriceList


def profiles_at(prices: PriceList | str | Path | None, names: Sequence[str] | None = None) -> list[Gpu]:
    """Return every GPU profile that can be bought at the prices of one list: nothing is mixed with another.

    `prices` is a list, the name of one that ships, or a user's file; None: the default one. `names` restricts
    to options of the gpu group. Remarks on stderr name the GPU types that are left out for want of a price,
    and what of a user's file is left out.

    Raises:
        ConfigError: unknown names, prices that cannot be used, or none of these types has one.
    """
    if names is not None and not names:
        raise ConfigError(
            "no GPU type is left to choose from", given="catalog=[]", cure="catalog=[a100,h100]"
        )
    used = prices if isinstance(prices, PriceList) else catalog.price_list(prices)
    chosen = None if names is None else list(dict.fromkeys(names))
    profiles = catalog.gpu_profiles(chosen, used)
    asked = catalog.options("gpu") if chosen is None else chosen
    if unpriced := [option for option in asked if option not in used.options]:
        note(f"left out, without a price in {used.name}: {', '.join(unpriced)}", style="yellow")
    if used.kind == "own" and (unused := [option for option in used.options if option not in asked]):
        note(f"prices left out of {used.name}, not in catalog=: {', '.join(unused)}", style="yellow")
    if used.skipped:
        rows = sum(used.skipped.values())
        which = ", ".join(sorted(used.skipped))
        note(f"{rows} rows of {used.name} are of GPU types that are not known: {which}", style="yellow")
    return profiles
