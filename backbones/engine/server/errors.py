"""Every refusal in OpenAI's error format: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

RETRY_AFTER = 1
"""Seconds after which a client that found the queue full may try again."""
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large", 415: "unsupported_media_type"}


class ApiError(Exception):
    """A request that is not answered."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return Response(orjson.dumps(self.body()), self.status, self.headers, "application/json")


def bad_field(param: str, message: str, code: str | None = None) -> ApiError:
    """A field that cannot be obeyed."""
    return ApiError(400, message, param=param, code=code)


def queue_full(message: str) -> ApiError:
    """Back-pressure: the client is to come again."""
    return ApiError(429, message, code="queue_full", headers={"Retry-After": str(RETRY_AFTER)})


def install(app: FastAPI) -> None:
    """Makes an app answer all its errors in this format."""

    @app.exception_handler(ApiError)
    async def _api(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> Response:
        return _invalid(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        return ApiError(
            error.status_code, str(error.detail), code=_CODES.get(error.status_code), headers=error.headers
        ).response()

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> Response:
        return ApiError(500, f"the server failed: {type(error).__name__} (see its log)").response()


def _invalid(problems: Sequence[Any]) -> ApiError:
    """The first problem that pydantic found."""
    problem = problems[0]
    if problem["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {problem.get('ctx', {}).get('error', '')}", code="invalid_json")
    name = field_name(problem["loc"][1:])
    message = problem["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{name}: {message}" if name else message, param=name or None, code=problem["type"])


def field_name(path: Sequence[int | str]) -> str:
    """`("messages", 0, "role")` as `messages[0].role`."""
    name = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return name.removeprefix(".")
