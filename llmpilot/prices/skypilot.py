"""Prices from a file in the format of SkyPilot's catalogue (github.com/skypilot-org/skypilot-catalog)."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from llmpilot.errors import ConfigError
from llmpilot.prices.price_list import Profile

COLUMNS = {"InstanceType", "AcceleratorName", "AcceleratorCount", "Price", "SpotPrice", "Region"}
NEEDED = {"AcceleratorName", "AcceleratorCount"}
SXM = ("a100_80gb", "h100", "h200")
"""Of these the catalogue has the board with NVLink; their PCIe cards, which GpuInfo names, are others."""
ACCELERATORS = {
    **{"A10": "a10", "A10G": "a10", "A100": "a100", "A100-40GB": "a100", "A100-40GB-SXM": "a100"},
    **{"A100-80GB": "a100_80gb", "A100-80GB-SXM": "a100_80gb"},
    **{"H100": "h100", "H100-80GB": "h100", "H100-SXM": "h100", "H100-MEGA": "h100", "H100-NVLINK": "h100"},
    **{"H20": "h20", "H200": "h200", "H200-SXM": "h200", "GH200": "gh200"},
    **{"B200": "b200", "B200-SXM": "b200", "B300": "b300", "B300-SXM": "b300"},
    **{"GB200": "gb200", "GB300": "gb300"},
    **{"L4": "l4", "L40S": "l40s", "T4": "t4", "V100": "v100", "Tesla-V100": "v100"},
    **{"RTX4090": "rtx_4090", "RTX-PRO-6000": "rtx_pro_6000", "RTXPRO6000S": "rtx_pro_6000"},
    **{"MI250": "mi250", "MI300X": "mi300x", "MI325X": "mi325x"},
}
"""What accelerators are called there, and the option of the gpu group: V100 is the one with 16 GB, A10G the
A10 that AWS sells."""


def sold(
    rows: Iterable[Mapping[str, str | None]], *, spot: bool, region: str | None, path: str
) -> tuple[dict[Profile, float], Counter[str], str]:
    """Return the price of each profile [$ per hour], the rows skipped by accelerator, and where that is.

    A profile has the price of the cheapest row with exactly so many GPUs: in `region`, or without one in
    whichever region it is cheapest. Rows without GPU or without a price are no offers.

    Raises:
        ConfigError: no such region, or no price of that kind.
    """
    names = {_plain(name): option for name, option in ACCELERATORS.items()}
    column = "SpotPrice" if spot else "Price"
    found: dict[Profile, tuple[float, str]] = {}
    skipped: Counter[str] = Counter()
    regions = set()
    for row in rows:
        name, here = (row.get("AcceleratorName") or "").strip(), (row.get("Region") or "").strip()
        count, price = _number(row.get("AcceleratorCount")), _number(row.get(column))
        if not name or not count:
            continue
        regions.add(here)
        if (region is not None and here.lower() != region.lower()) or not price:
            continue
        option = names.get(_plain(name))
        if option in SXM and "pcie" in (row.get("GpuInfo") or "").lower():
            name, option = f"{name} PCIe", None
        if option is None or count != int(count):
            skipped[name] += 1
            continue
        profile = (option, int(count))
        found[profile] = min((price, here), found.get(profile, (price, here)))
    if region is not None and region.lower() not in {one.lower() for one in regions}:
        raise ConfigError(
            "the prices have no such region",
            given=f"prices_region={region}",
            cure=f"there are {', '.join(sorted(filter(None, regions))) or 'no regions'}",
        )
    if not found:
        raise ConfigError(
            f"there is no {'spot' if spot else 'on-demand'} price of a known GPU type in the file",
            given=f"prices={path}",
            cure="prices_kind=on_demand" if spot else "another file, or prices_kind=spot",
        )
    used = {here for _, here in found.values()}
    where = used.pop() if len(used) == 1 else "each profile where it is cheapest"
    return {profile: price for profile, (price, _) in found.items()}, skipped, where


def _plain(name: str) -> str:
    return re.sub(r"[^A-Z0-9]", "", name.upper())


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
