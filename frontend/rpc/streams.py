"""Messages of a stream, each answered by a task of its own, and a bounded number of them under way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from grpc.aio import EOF, BaseError, ServicerContext

from ipc.errors import EngineUnavailable, RequestError

# Enough for the batches of every lane. While so many answers are not yet taken by the client, nothing more is read
# from it, and HTTP/2's flow control makes it wait.
MOST_UNDER_WAY: Final = 256
STOPPING: Final = "This front end is stopping: send what has no answer yet on a new connection."


async def read(context: ServicerContext[bytes, bytes]) -> bytes | None:
    """The next message of a call, None after its last."""
    # Its annotation does not know of EOF.
    message: Any = await context.read()
    return None if message is EOF else message


class Flow:
    """One stream. `answer` makes a message's answer; the first error it raises ends the stream with it.

    Answers are written as they are made, or `in_order` of the messages.
    """

    def __init__(
        self,
        context: ServicerContext[bytes, bytes],
        answer: Callable[[bytes], Awaitable[bytes]],
        *,
        in_order: bool,
    ) -> None:
        self._context = context
        self._answer = answer
        self._in_order = in_order
        self._room = asyncio.Semaphore(MOST_UNDER_WAY)
        # gRPC takes one message at a time.
        self._writing = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Return once the client has sent its last message and has all answers. Raises a RequestError."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._reading = tasks.create_task(self._read(tasks))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if self._reading.cancelled():
            raise EngineUnavailable(STOPPING)

    def stop(self) -> None:
        """Read no further; a stream that was read to its end ends as if nothing were."""
        assert self._reading is not None, "this is a bug: it is run before anybody can stop it"
        self._reading.cancel()

    async def _read(self, tasks: asyncio.TaskGroup) -> None:
        before: asyncio.Task[None] | None = None
        while True:
            await self._room.acquire()
            message = await read(self._context)
            if message is None:
                return
            before = tasks.create_task(self._serve(message, before if self._in_order else None))

    async def _serve(self, message: bytes, before: asyncio.Task[None] | None) -> None:
        result: bytes | RequestError
        try:
            result = await self._answer(message)
        except RequestError as error:
            result = error.with_traceback(None)
        if before is not None:
            # Not awaited itself: this task's cancellation is none of its.
            await asyncio.wait({before})
        if isinstance(result, RequestError):
            raise result
        try:
            async with self._writing:
                await self._context.write(result)
        except BaseError:
            # The client is gone, and gRPC is about to cancel the call.
            raise asyncio.CancelledError from None
        self._room.release()
