"""The schema that others read is the one that results are made by, and says what it must."""

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from test_metrics_streams import records_of

from llmpilot.config import Sla
from llmpilot.metrics import summarize
from llmpilot.report import result_fields
from llmpilot.report.result_fields import FILE, RESULT, Level


def test_the_shipped_file_is_what_the_fields_say() -> None:
    made = "python -m llmpilot.report.result_fields"
    assert FILE.read_text(encoding="utf-8") == result_fields.text(), f"make it anew: {made}"


def test_every_reference_leads_somewhere() -> None:
    schema = json.loads(FILE.read_text(encoding="utf-8"))

    def references(part: Any) -> set[str]:
        if isinstance(part, dict):
            own = {part["$ref"]} if "$ref" in part else set()
            return own.union(*map(references, part.values()))
        return set().union(*map(references, part)) if isinstance(part, list) else set()

    assert schema["properties"]["schema"]["const"] == RESULT
    assert {"schema", "levels", "sla", "users_max"} <= set(schema["required"])
    assert references(schema) == {"#", *(f"#/$defs/{name}" for name in schema["$defs"] if name != "Sweep")}


def level_of(**columns: Any) -> dict[str, Any]:
    level = summarize(records_of([[20_000] * 3] * 4, **columns), Sla())
    parsed = Level.model_validate(level).model_dump(exclude_unset=True)
    assert parsed == level
    return level


def test_levels_of_every_kind_are_described() -> None:
    four = np.arange(4, dtype=np.int64)
    level = level_of(
        first_answer_us=four + 300_000,
        hidden_tokens=four,
        cached_tokens=four,
        turn=four,
        counted_input_tokens=four + 9,
        asked_input_tokens=four + 10,
    )
    kinds = {"ttfa_ms", "thought_aloud", "hidden_tokens", "cached_share", "turns"}
    assert kinds <= set(level)
    failed = records_of([[20_000]])
    failed.failure[:] = "reset"
    Level.model_validate(summarize(failed, Sla()))
    assert not kinds & set(level_of())


def test_what_is_missing_or_of_another_kind_is_refused() -> None:
    level = level_of()
    for wrong in ({"itl_ms": None}, {"requests_ok": "many"}, {"streams": {"not_shown": ["e2e"]}}):
        with pytest.raises(ValidationError):
            Level.model_validate(level | wrong)
    with pytest.raises(ValidationError, match="goodput_per_s"):
        Level.model_validate({key: value for key, value in level.items() if key != "goodput_per_s"})
