"""One call from its metadata to its status: correlation id, key, errors, log line and metrics, as HTTP's middleware."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any, Final, NoReturn, Self, cast

import grpc
from grpc.aio import BaseError, ServicerContext

from frontend.admission import VERDICT
from frontend.auth import SCOPE_KEY, authorized
from frontend.correlation import given_id, new_id
from frontend.keys import KeyRing
from frontend.limits.quota import Verdict
from frontend.metrics import RequestMetrics
from frontend.request_log import FACTS, Facts, RequestLog
from frontend.responses import STATUS
from frontend.rpc.status import Pairs, code_of, error_metadata, field_of
from frontend.rpc.streams import Flow, read
from ipc.errors import DeadlineExceeded, InternalError, InvalidRequest, RequestError
from ipc.log import correlation_id

log = logging.getLogger(__name__)

# The core's name for a deadline. gRPC's own counts before one that is given so.
TIMEOUT: Final = "x-request-timeout-ms"
# Of what else may come after these many milliseconds the core makes the most there is.
MOST_TIMEOUT_MS: Final = 999_999_999

# The client's clock may be the first to reach a deadline, by as long as the call was on its way.
DEADLINE_SLACK_SECONDS: Final = 0.1

Context = ServicerContext[bytes, bytes]
# From a call and its message to its answer, both as they are on the wire.
Answer = Callable[["Rpc", bytes], Awaitable[bytes]]


class Rpc:
    """A call, or one message of a stream, as the core reads a request (`frontend.request`)."""

    def __init__(self, path: str, context: Context, metadata: list[tuple[bytes, bytes]], identity: str) -> None:
        self._context = context
        self._metadata = metadata
        self.facts = Facts(time.monotonic_ns())
        # Every gRPC request is a POST of HTTP/2.
        self.scope: dict[str, Any] = {
            "method": "POST",
            "path": path,
            "headers": metadata,
            "correlation_id": identity,
            FACTS: self.facts,
        }

    @classmethod
    def open(cls, path: str, context: Context) -> Self:
        """A call that begins."""
        pairs = context.invocation_metadata() or ()
        metadata = [(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in pairs]
        return cls(path, context, metadata, given_id(metadata) or new_id())

    @cached_property
    def headers(self) -> dict[str, str]:
        """The metadata, with gRPC's deadline under the name that the core knows."""
        headers = {str(name, "ascii"): str(value, "latin-1") for name, value in self._metadata}
        left = self.seconds_left()
        if left is not None:
            headers[TIMEOUT] = str(max(1, int(min(left * 1e3, MOST_TIMEOUT_MS))))
        return headers

    def seconds_left(self) -> float | None:
        """Until gRPC's deadline; None where there is none, which its annotation does not know."""
        return cast("float | None", self._context.time_remaining())

    def authorize(self, keys: KeyRing) -> None:
        """Find the key. Raises Unauthorized."""
        self.scope[SCOPE_KEY] = authorized(keys, self._metadata)

    def message(self) -> Rpc:
        """One message of this stream: a request of its own, under the same id."""
        return Rpc(self.scope["path"], self._context, self._metadata, self.scope["correlation_id"])

    def failed(self, error: RequestError) -> None:
        """Note what it ended with, for log and metrics, which tell statuses as HTTP has them."""
        self.facts.status, self.facts.error = STATUS[type(error)], error.code

    def trailing(self) -> Pairs:
        """The metadata of every answer."""
        verdict: Verdict | None = self.scope.get(VERDICT)
        return [("x-correlation-id", self.scope["correlation_id"]), *(verdict.headers() if verdict else ())]


class Calls:
    """Makes gRPC handlers of functions from bytes to bytes.

    All of them take their messages as streams do, one message or many: so a call without a key is refused before a
    byte of its message is read. `field` is what a method calls its texts, in errors.
    """

    def __init__(self, keys: KeyRing, request_log: RequestLog, metrics: RequestMetrics) -> None:
        self._keys = keys
        self._log = request_log
        self._metrics = metrics
        self._flows: set[Flow] = set()

    def unary(self, path: str, answer: Answer, field: str) -> grpc.RpcMethodHandler[bytes, bytes]:
        """One message, one answer."""

        async def handle(_: object, context: Context) -> bytes:
            rpc = Rpc.open(path, context)
            correlation_id.set(rpc.scope["correlation_id"])
            try:
                return await self._guard(rpc, context, field, self._answer_one(rpc, context, answer))
            finally:
                self._log.note(rpc.scope, rpc.facts)
                self._metrics.note(rpc.scope, rpc.facts)

        return grpc.stream_unary_rpc_method_handler(handle)

    def stream(self, path: str, answer: Answer, field: str, *, in_order: bool) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Many messages, each with one answer. Each is counted as a request; the stream itself only where it fails."""

        async def handle(_: object, context: Context) -> None:
            rpc = Rpc.open(path, context)
            correlation_id.set(rpc.scope["correlation_id"])
            try:
                await self._guard(rpc, context, field, self._flow(rpc, context, answer, in_order))
            finally:
                self._log.note(rpc.scope, rpc.facts)
                if rpc.facts.error is not None:
                    self._metrics.note(rpc.scope, rpc.facts)

        return grpc.stream_stream_rpc_method_handler(handle)

    def stop(self) -> None:
        """Read no further message of any stream: each ends once what it has read is answered."""
        for flow in self._flows:
            flow.stop()

    async def _answer_one(self, rpc: Rpc, context: Context, answer: Answer) -> bytes:
        rpc.authorize(self._keys)
        message = await read(context)
        if message is None:
            raise InvalidRequest("The call has no message.")
        return await answer(rpc, message)

    async def _flow(self, rpc: Rpc, context: Context, answer: Answer, in_order: bool) -> bytes:
        rpc.authorize(self._keys)

        async def one(message: bytes) -> bytes:
            # Anew for each: a key that is revoked ends its streams, and its limits may have changed.
            request = rpc.message()
            request.authorize(self._keys)
            try:
                done = await answer(request, message)
            except RequestError as error:
                request.failed(error)
                raise
            else:
                # An answer may tell of an error itself.
                request.facts.status = request.facts.status or 200
                return done
            finally:
                self._metrics.note(request.scope, request.facts)
                _add(rpc.facts, request.facts)

        flow = Flow(context, one, in_order=in_order)
        self._flows.add(flow)
        try:
            await flow.run()
        finally:
            self._flows.discard(flow)
        return b""

    async def _guard(self, rpc: Rpc, context: Context, field: str, work: Awaitable[bytes]) -> bytes:
        """Await the answer; whatever is raised becomes the call's status."""
        try:
            done = await work
        except asyncio.CancelledError:
            left = rpc.seconds_left()
            if left is not None and left < DEADLINE_SLACK_SECONDS:
                rpc.failed(DeadlineExceeded("gRPC's deadline passed."))
            raise
        except BaseError:
            # gRPC's own: the call is over, or the server has waited long enough for it.
            raise
        except RequestError as error:
            # As in frontend.errors: no circle with this frame.
            await self._abort(rpc, context, field, error.with_traceback(None))
        except Exception:
            log.exception("unexpected error", extra={"path": rpc.scope["path"]})
            problem = InternalError("An unexpected error: the log has it under this correlation id.")
            await self._abort(rpc, context, field, problem)
        rpc.facts.status = 200
        context.set_trailing_metadata(tuple(rpc.trailing()))
        return done

    async def _abort(self, rpc: Rpc, context: Context, field: str, error: RequestError) -> NoReturn:
        rpc.failed(error)
        metadata = (*rpc.trailing(), *error_metadata(error, field_of(error, field)))
        await context.abort(code_of(error), error.message, metadata)


def _add(whole: Facts, part: Facts) -> None:
    """What a stream's line tells of its messages: sums, and the times of the one that took longest."""
    whole.texts += part.texts
    whole.tokens += part.tokens
    whole.tokenize_ns += part.tokenize_ns
    whole.wait_ns = max(whole.wait_ns, part.wait_ns)
    whole.compute_ns = max(whole.compute_ns, part.compute_ns)
