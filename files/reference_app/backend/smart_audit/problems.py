"""Problem details (RFC 9457): the one shape that every error of the API has."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from smart_audit import trace

MEDIA_TYPE = "application/problem+json"


class ProblemDetails(BaseModel):
    """What an error answer holds, for the API's description."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    trace_id: str | None = None


class Problem(Exception):
    """Ends a request with a problem.

    Attributes:
        status: HTTP status.
        slug: names the kind of problem, for programs; stable.
        detail: one sentence for the person, with the way out.
        headers: headers to send.
        members: further members of the JSON object.
    """

    def __init__(
        self,
        status: int,
        slug: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.slug = slug
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members

    def response(self, instance: str) -> Response:
        """Return the answer; `instance` is the path that was asked for."""
        current = trace.current()
        body = {
            "type": f"urn:smart-audit:problem:{self.slug}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            "trace_id": current.trace_id if current else None,
            **self.members,
        }
        return Response(
            json.dumps(body, ensure_ascii=False),
            status_code=self.status,
            media_type=MEDIA_TYPE,
            headers={"Cache-Control": "no-store", **self.headers},
        )


def unavailable(service: str, retry_after_seconds: int) -> Problem:
    """Return the problem for a service that does not answer now."""
    return Problem(
        503,
        "unavailable",
        f"The {service} does not answer at the moment. Try again in {retry_after_seconds} s.",
        {"Retry-After": str(retry_after_seconds)},
    )
