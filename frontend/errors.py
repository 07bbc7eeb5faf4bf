"""Exactly one answer a request, whatever happens: errors become the answer of the path's dialect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from frontend.dialects import Dialect
from frontend.request_log import FACTS
from frontend.responses import error_response
from ipc.errors import EngineUnavailable, InternalError, MethodNotAllowed, RequestError, UnknownRoute

log = logging.getLogger(__name__)


class Errors:
    """Renders what is raised below it in the dialect of the path; `default` speaks for unknown paths."""

    def __init__(self, app: ASGIApp, dialects: Mapping[str, Dialect], default: Dialect) -> None:
        self._app = app
        self._dialects = dialects
        self._default = default

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:
            # Nobody else cancels a request whose client is there: the front end ends and has waited long enough.
            if scope[FACTS].status is not None:
                raise
            problem: RequestError = EngineUnavailable("This front end is stopping: try again.", retry_after=1)
        except RequestError as error:
            # Its traceback holds this frame, which holds it: 540 such circles and the collector stops all for 9 ms.
            problem = error.with_traceback(None)
        except Exception as error:
            expected = of_starlette(error, scope)
            if expected is None:
                log.exception("unexpected error", extra={"path": scope["path"]})
                if scope[FACTS].status is not None:
                    raise
            problem = expected or InternalError("An unexpected error: the log has it under this correlation id.")
        else:
            return
        scope[FACTS].error = problem.code
        await self._render(scope, problem)(scope, receive, send)

    def _render(self, scope: Scope, error: RequestError) -> Response:
        dialect = self._dialects.get(scope["path"], self._default)
        status = dialect.STATUS[type(error)]
        return error_response(error, status, dialect.error_body(error, status, scope["correlation_id"]))


def of_starlette(error: Exception, scope: Scope) -> RequestError | None:
    """The router's own errors (no such path, no such method) as ours; None for what is not one of them."""
    match error:
        case HTTPException(status_code=404):
            return UnknownRoute(f"There is nothing at {scope['path']}.")
        case HTTPException(status_code=405):
            # Starlette's comes from a set, in no order.
            allow = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
            return MethodNotAllowed(f"{scope['path']} does not take {scope['method']}: use {allow}.", allow)
        case _:
            return None
