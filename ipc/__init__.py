"""What both sides agree on: wire format, shared memory, liveness, errors, settings. Imports nothing else of ours."""
