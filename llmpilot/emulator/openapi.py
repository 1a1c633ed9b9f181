"""The OpenAPI document of the emulator: what it takes, and every status it answers with."""

from typing import Any

import llmpilot
from llmpilot.emulator.api import ROLES
from llmpilot.emulator.service import EmulatedService

ABOUT = """No model runs here; texts are made up, their times are simulated. Text counts one token per 4
characters, a chat message 4 more; token ids count themselves. With ignore_eos, or min_tokens equal to
max_tokens, the output has max_tokens tokens; else its length is drawn from the workload, up to max_tokens
(without one: 16 for a completion, the rest of the context for a chat). Unknown fields are ignored, and no
stop string ever occurs."""
_ERRORS = {
    400: "The request is not acceptable; param names the field.",
    401: "The API key is missing or wrong.",
    404: "No such path or model.",
    405: "No such method here.",
    408: "The request did not come in time.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    500: "An emulated fault, or a bug.",
    503: "The model is still loading (emulated).",
}


def document(service: EmulatedService, url: str, *, secured: bool) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document as nested plain values."""
    paths: dict[str, Any] = {
        "/v1/completions": {
            "post": _generation("Complete a prompt", _completion(service), "text_completion")
        },
        "/v1/chat/completions": {
            "post": _generation("Answer a conversation", _chat(service), "chat.completion")
        },
        "/v1/models": {"get": _get("The model that is served", _model_list(), 401, 503)},
        "/v1/models/{model}": {
            "get": _get("One model", _model(), 401, 404, 503)
            | {
                "parameters": [
                    {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
                ]
            }
        },
        "/health": {"get": _get("Empty once the model is loaded", None, 503)},
        "/version": {"get": _get("The version", {"type": "object", "required": ["version"]})},
        "/metrics": {"get": _get("Prometheus metrics", None)},
        "/openapi.json": {"get": _get("This document", {"type": "object"})},
    }
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "LLM-Pilot emulator", "version": llmpilot.__version__, "description": ABOUT},
        "servers": [{"url": url}],
        "paths": paths,
        "components": {"schemas": {"Error": _error()}},
    }
    if secured:
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in paths.items():
            if path.startswith("/v1/"):
                for operation in operations.values():
                    operation["security"] = [{"key": []}]
    return described


def _generation(summary: str, schema: dict[str, Any], kind: str) -> dict[str, Any]:
    answer = {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": kind},
            "choices": {"type": "array", "minItems": 1},
            "usage": {"type": "object"},
        },
    }
    content = {
        "application/json": {"schema": answer},
        "text/event-stream": {},
    }
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {"200": {"description": "The answer, whole or streamed", "content": content}}
        | _errors(400, 401, 404, 408, 413, 415, 500, 503),
    }


def _get(summary: str, schema: dict[str, Any] | None, *errors: int) -> dict[str, Any]:
    content = (
        {"application/json": {"schema": schema}} if schema else {"text/plain": {"schema": {"type": "string"}}}
    )
    return {
        "summary": summary,
        "responses": {"200": {"description": summary, "content": content}} | _errors(*errors),
    }


def _errors(*statuses: int) -> dict[str, Any]:
    schema = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {str(status): {"description": _ERRORS[status], "content": schema} for status in statuses}


def _error() -> dict[str, Any]:
    fields: dict[str, Any] = {
        name: {"type": ["string", "null"]} for name in ("message", "type", "param", "code")
    }
    body = {"type": "object", "required": list(fields), "properties": fields}
    return {"type": "object", "required": ["error"], "properties": {"error": body}}


def _model() -> dict[str, Any]:
    return {"type": "object", "required": ["id", "object"], "properties": {"id": {"type": "string"}}}


def _model_list() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["object", "data"],
        "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _model()}},
    }


def _completion(service: EmulatedService) -> dict[str, Any]:
    token = {"type": "integer", "minimum": 0, "maximum": service.vocabulary_size - 1}
    ids = {"type": "array", "items": token, "minItems": 1}
    strings = {"type": "array", "items": {"type": "string"}, "minItems": 1}
    prompt = {"anyOf": [{"type": "string"}, strings, ids, {"type": "array", "items": ids, "minItems": 1}]}
    return _body(service, {"prompt": prompt}, {"best_of": _nullable("integer", minimum=1, maximum=128)})


def _chat(service: EmulatedService) -> dict[str, Any]:
    message = {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"enum": list(ROLES)}, "content": {"type": "string"}},
    }
    return _body(service, {"messages": {"type": "array", "items": message, "minItems": 1}}, {})


def _body(service: EmulatedService, required: dict[str, Any], optional: dict[str, Any]) -> dict[str, Any]:
    flag, number = {"type": ["boolean", "null"]}, {"type": ["number", "null"]}
    stops = [{"type": "null"}, {"type": "string"}, {"type": "array", "items": {"type": "string"}}]
    properties = {
        "model": {"enum": [service.model_id, *service.aliases]},
        **required,
        "max_tokens": _nullable("integer", minimum=1),
        "max_completion_tokens": _nullable("integer", minimum=1),
        "min_tokens": _nullable("integer", minimum=0),
        "ignore_eos": flag,
        "n": _nullable("integer", minimum=1, maximum=128),
        "stream": flag,
        "stream_options": {
            "type": ["object", "null"],
            "properties": {"include_usage": flag, "continuous_usage_stats": flag},
        },
        "return_token_ids": flag,
        "stop": {"anyOf": stops},
        "temperature": number | {"minimum": 0, "maximum": 2},
        "top_p": number | {"minimum": 0, "maximum": 1},
        "top_k": {"type": ["integer", "null"]},
        "seed": {"type": ["integer", "null"]},
        "presence_penalty": number | {"minimum": -2, "maximum": 2},
        "frequency_penalty": number | {"minimum": -2, "maximum": 2},
        **optional,
    }
    return {"type": "object", "required": ["model", *required], "properties": properties}


def _nullable(kind: str, **bounds: int) -> dict[str, Any]:
    return {"type": [kind, "null"], **bounds}
