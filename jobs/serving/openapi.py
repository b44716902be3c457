"""The OpenAPI 3.1 document of the JSON API, from its parameter and result types."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, TypeAdapter

from jobs.serving.library import Moment

ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}


def description(question: type[BaseModel], upload_type: str) -> dict[str, Any]:
    """Return the document of an API whose searches take the fields of `question`."""
    schemas = TypeAdapter(Moment).json_schema(ref_template="#/components/schemas/{model}")
    fields = question.model_json_schema()["properties"]
    for schema in fields.values():
        if schema.get("default") == math.inf:  # JSON has no infinity
            del schema["default"]
    parameters = [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": schema.pop("description", "")}
        for name, schema in fields.items()
    ]
    filters = [part for part in parameters if part["name"] not in ("q", "like", "rerank")]
    row = {"name": "row", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}}
    media = {"required": True, "content": {upload_type: {"schema": {"type": "string", "format": "binary"}}}}
    moments = answer("Moments, best first", {"type": "array", "items": {"$ref": "#/components/schemas/Moment"}})
    jpeg = {"200": {"description": "A JPEG", "content": {"image/jpeg": {}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "snps3", "version": "1", "description": "Moments of videos by sentences, pictures or clips"},
        "components": {
            "schemas": {"Moment": schemas, "Error": ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
        "paths": {
            "/api/search": {"get": operation("By a sentence, or like a moment", moments, parameters)},
            "/api/like": {"post": operation("Like a picture or video", moments, filters) | {"requestBody": media}},
            "/api/around/{row}": {"get": operation("The windows beside a moment", moments, [row])},
            "/strips/{row}": {"get": operation("Frames of a moment", jpeg, [row])},
            "/healthz": {"get": operation("Whether questions are answered", {"200": {"description": "They are"}}, [])},
        },
    }


def answer(title: str, moments: dict[str, Any]) -> dict[str, Any]:
    """Return the responses of a search: moments, or an error message."""
    schema = {"type": "object", "properties": {"moments": moments}, "required": ["moments"]}
    error = {"$ref": "#/components/schemas/Error"}
    return {
        "200": {"description": title, "content": {"application/json": {"schema": schema}}},
        "default": {"description": "What is wrong", "content": {"application/json": {"schema": error}}},
    }


def operation(summary: str, responses: dict[str, Any], parameters: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the description of an operation."""
    return {"summary": summary, "parameters": parameters, "responses": responses}
