"""What a user of the composed server sees: asks with OpenAI's client until there is an answer, then checks it.

    python -m tests.containers.client URL KEY

It asks again while nothing listens or the answer is a 5xx. The reference's texts must have the right vectors, and a
text that nobody has sent before is among them, so that the engine answers and no cache does. Prints the seconds until
there was an answer.
"""

from __future__ import annotations

import sys
import time
import uuid

import numpy as np
from openai import APIConnectionError, InternalServerError, OpenAI

from tests.system.reference import MIN_COSINE, cosine, load_references

PATIENCE_SECONDS = 120
POLL_SECONDS = 0.1


def embed(client: OpenAI, texts: list[str]) -> list[list[float]]:
    """The vectors of `texts`, asked for again until there is an answer. Raises the last error where there is none."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            answer = client.embeddings.create(
                model="any", input=texts, encoding_format="float", extra_body={"truncate": True}
            )
        except (APIConnectionError, InternalServerError):
            if time.monotonic() > give_up:
                raise
            time.sleep(POLL_SECONDS)
        else:
            return [item.embedding for item in answer.data]


def main(url: str, key: str) -> None:
    """Ask, check, print."""
    # OpenAI takes no empty text.
    references = [reference for reference in load_references() if reference.text]
    # The client's own retries pause for longer than the server is away.
    client = OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    began = time.monotonic()
    *vectors, _ = embed(client, [*(r.text for r in references), uuid.uuid4().hex])
    seconds = time.monotonic() - began
    assert len(vectors) == len(references)
    lowest = min(cosine(np.array(v, np.float32), r.vector) for v, r in zip(vectors, references, strict=True))
    assert lowest > MIN_COSINE, f"a vector is wrong: cosine {lowest}"
    print(f"{len(vectors)} vectors are right, after {seconds:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
