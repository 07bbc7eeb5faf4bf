"""OpenAI's batch format: a line a request in, a line an answer out, in the same order.

A line that cannot be read gets an `error`; a request that a server would refuse gets the answer that it would get.
Either is that line's own affair, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec
import numpy as np

from frontend.dialects.openai import EmbeddingsBody
from frontend.responses import base64_vector, json_vector, sliced
from ipc.errors import InvalidRequest
from ipc.slab import Rows
from tools.embed.window import Fault, Row, Terms, Window
from tools.embed.writers import Data

URL = "/v1/embeddings"


class Line(msgspec.Struct):
    """One line of the input. Other fields are ignored."""

    custom_id: str
    body: msgspec.Raw
    method: Literal["POST"] = "POST"
    url: str = URL


@dataclass(frozen=True, slots=True)
class Asked:
    """What the answer to a line needs: None where not even this could be read."""

    custom_id: str | None = None
    encoding_format: str | None = None
    dimensions: int | None = None
    was_read: bool = False


_lines = msgspec.json.Decoder(Line)
_bodies = msgspec.json.Decoder(EmbeddingsBody)


def requests(dim: int, prompts: Container[str], most_texts: int) -> Callable[[bytes], Row]:
    """Lines that are requests, for a model with so many dimensions and these prompts."""

    def parse(line: bytes) -> Row:
        asked = Asked()
        try:
            request = _lines.decode(line)
            asked = Asked(request.custom_id)
            if request.url != URL:
                return Row([], asked, Fault(f"its url is not {URL}", code="invalid_url"))
            asked = replace(asked, was_read=True)
            body = _bodies.decode(request.body)
            texts, terms = _checked(body, dim, prompts, most_texts)
        except (msgspec.MsgspecError, UnicodeDecodeError, InvalidRequest) as error:
            return Row([], asked, Fault(str(error), code="invalid_request" if asked.was_read else "invalid_line"))
        return Row(texts, replace(asked, encoding_format=body.encoding_format, dimensions=body.dimensions), None, terms)

    return parse


def _checked(body: EmbeddingsBody, dim: int, prompts: Container[str], most_texts: int) -> tuple[list[str], Terms]:
    texts = body.texts()
    if texts is None:
        raise InvalidRequest("`input` holds token ids: send texts.")
    if not texts or "" in texts:
        raise InvalidRequest("`input` is empty, or has an empty text.")
    if len(texts) > most_texts:
        raise InvalidRequest(f"`input` has {len(texts)} texts, the most is {most_texts}.")
    if body.dimensions is not None and body.dimensions > dim:
        raise InvalidRequest(f"`dimensions` is {body.dimensions}, the model has {dim}.")
    name = body.prompt(prompts)
    if name is not None and name not in prompts:
        raise InvalidRequest("`prompt_name` is no prompt of the model.")
    return texts, Terms(bool(body.truncate), name)


class BatchWriter:
    """A line for each line of the input. Ids are made of its number, so that they are the same at every run."""

    head = b""

    def __init__(self, model: str) -> None:
        self._model = model

    def data(self, window: Window) -> Data:
        """See Writer."""
        lines: list[bytes] = []
        text = 0
        for number, row in enumerate(window.rows, window.first + 1):
            end = text + len(row.texts)
            tokens = int(window.tokens[text:end].sum())
            response, error = None, None
            if not row.fault:
                response = self._response(row.about, window.vectors[text:end], tokens)
            elif row.about.was_read:
                response = _refusal(row.fault)
            else:
                error = {"code": row.fault.code, "message": row.fault.reason}
            if response is not None:
                response = {**response, "request_id": f"req_{number:012d}"}
            line = {"id": f"batch_req_{number:012d}", "custom_id": row.about.custom_id}
            lines.append(msgspec.json.encode({**line, "response": response, "error": error}) + b"\n")
            text = end
        return lines

    def finish(self, partial: BinaryIO, path: Path, rows: int) -> Path:
        """See Writer."""
        return path

    def _response(self, asked: Asked, vectors: Rows, tokens: int) -> dict[str, Any]:
        take: Callable[[Rows], bytes] = base64_vector if asked.encoding_format == "base64" else json_vector
        if asked.dimensions is not None:
            take = sliced(take, asked.dimensions)
        data = [
            {"object": "embedding", "index": index, "embedding": msgspec.Raw(take(np.ascontiguousarray(vector)))}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"status_code": 200, "body": {"object": "list", "data": data, "model": self._model, "usage": usage}}


def _refusal(fault: Fault) -> dict[str, Any]:
    kind = "server_error" if fault.status >= 500 else "invalid_request_error"
    error = {"message": fault.reason, "type": kind, "param": None, "code": fault.code}
    return {"status_code": fault.status, "body": {"error": error}}
