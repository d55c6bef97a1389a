"""The API described: `/openapi.json`, and `/docs`, the same as a page to read."""

from typing import Any

from apiflask import APIBlueprint, APIFlask
from flask import Response, current_app, render_template

from virtfleet.routes.door import OPEN, answer, require

blueprint = APIBlueprint("documentation", __name__, enable_openapi=False, template_folder="templates")

PROBLEM = {
    "type": "object",
    "description": "RFC 9457: what went wrong, and what to do.",
    "required": ["type", "title", "status", "detail", "code", "hint"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was wanted and what stood in the way."},
        "code": {"type": "string", "description": "The same as a stable word."},
        "hint": {"type": "string", "description": "What to do next."},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
        "hosts": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "host": {"type": "string"},
                    "reasons": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
    },
}
FAILED = {
    "description": "A problem (RFC 9457).",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
METHODS = ("get", "post", "patch", "put", "delete")


def describe(app: APIFlask) -> None:
    """Set what the specification says as a whole."""
    app.config["OPENAPI_VERSION"] = "3.1.0"
    app.config["AUTO_404_RESPONSE"] = False
    app.config["AUTO_AUTH_ERROR_RESPONSE"] = False
    app.config["AUTO_VALIDATION_ERROR_RESPONSE"] = False
    app.config["AUTO_OPERATION_SUMMARY"] = True
    app.config["AUTO_OPERATION_ID"] = True
    app.description = (
        "Machines on a fleet of libvirt hosts. What starts work answers 202 with a job. Errors are problems (RFC 9457)."
    )
    app.spec_processor(_mend)


def _mend(spec: Any) -> Any:
    """Put in what every operation has in common: the token, and the one shape of errors."""
    parts = spec.setdefault("components", {})
    parts.setdefault("schemas", {})["Problem"] = PROBLEM
    parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in spec.get("paths", {}).items():
        for method in METHODS:
            if method not in operations:
                continue
            operation = operations[method]
            operation.setdefault("responses", {})["default"] = FAILED
            view = current_app.view_functions.get(_endpoint(path, method))
            scope = getattr(view, "required_scope", None)
            if scope is not None and scope != OPEN:
                operation["security"] = [{"token": []}]
                operation["x-scope"] = scope
    return spec


def _endpoint(path: str, method: str) -> str:
    """Return the endpoint of an operation of the specification."""
    for rule in current_app.url_map.iter_rules():
        shown = "".join(
            f"{{{part[1]}}}" if part[0] else part[1]
            for part in ((is_dynamic, data) for is_dynamic, data in rule._trace if data != "|")
        )
        if shown == path and method.upper() in (rule.methods or ()):
            return rule.endpoint
    return ""


@blueprint.get("/openapi.json")
@require(OPEN)
def openapi() -> Response:
    """Show the specification of this API"""
    return answer(current_app.spec)  # type: ignore[attr-defined]


@blueprint.get("/docs")
@require(OPEN)
def page() -> str:
    """Show the specification as a page"""
    spec = current_app.spec  # type: ignore[attr-defined]
    operations = [
        {"path": path, "method": method, **described}
        for path, methods in spec["paths"].items()
        for method, described in methods.items()
        if method in METHODS
    ]
    groups: dict[str, list[dict[str, Any]]] = {}
    for operation in operations:
        groups.setdefault((operation.get("tags") or ["other"])[0], []).append(operation)
    return render_template("api.html", spec=spec, groups=groups)
