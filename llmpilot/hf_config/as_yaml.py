"""Writes a model's facts as an option of the catalogue, layer kinds on lines of their own."""

from typing import Any

import yaml

from llmpilot.config import Model

ALWAYS = ("name", "hf_id", "architecture", "weight_bytes_per_parameter", "torch_dtype", "flash_attention")
LONGEST = 110


def option_text(model: Model) -> str:
    """Return the YAML of a model's option: all facts that are not the defaults of Model."""
    facts: dict[str, Any] = {}
    defaults = {name: field.default for name, field in Model.model_fields.items()}
    for key, value in model.model_dump(exclude={"layers", "formats"}).items():
        if key in ALWAYS or value != defaults[key]:
            facts[key] = float(f"{value:.6g}") if isinstance(value, float) else value
    facts = {key: _short(value) for key, value in facts.items()}
    source = facts.pop("source", "")
    lines = [_dump({key: value}) for key, value in facts.items()]
    return "".join([*lines, layers_text(model), _dump({"source": source})])


def layers_text(model: Model) -> str:
    """Return the YAML of a model's layers and formats; what is a default is left out."""
    text = "layers:\n" if model.layers else ""
    for kind in model.layers:
        text += f"  - count: {kind.count}\n"
        if kind.mixers:
            mixers = [_flow(_given(mixer)) for mixer in kind.mixers]
            text += "".join(["    mixers:\n", *(f"      - {mixer}\n" for mixer in mixers)])
        if kind.feed_forward is not None:
            text += f"    feed_forward: {_flow(_given(kind.feed_forward))}\n"
    formats = model.formats.model_dump(exclude_defaults=True)
    return text + (f"formats: {_flow(formats)}\n" if formats else "")


def _given(part: Any) -> dict[str, Any]:
    return {"kind": part.kind, **part.model_dump(exclude_defaults=True)}


def _flow(values: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {_word(value)}" for key, value in values.items()) + "}"


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _short(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _dump(values: dict[str, Any]) -> str:
    return str(yaml.safe_dump(values, width=LONGEST, allow_unicode=True))
