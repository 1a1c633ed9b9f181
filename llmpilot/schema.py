"""What all typed schemas of facts have in common, and the bounded numbers that they share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Rate = Annotated[float, Field(ge=1e-3, le=1e6)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


def exactly(value: float) -> str:
    """Return a number in digits, as many as tell it from every other: `8`, `2.5`, `1.0000001`."""
    return repr(float(value)).removesuffix(".0")


def at_level(level: float, unit: str) -> str:
    """Return a level of load with its unit: `1 user`, `8 users`, `1 requests/s`."""
    return f"{exactly(level)} {'user' if unit == 'users' and level == 1 else unit}"


class Facts(BaseModel):
    """Base of all schemas: frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
