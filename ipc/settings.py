"""The one frozen table of settings: `EMBEDLANE_*` from the environment, else from `.env`, else the default.

Every process reads the same table, so a name that is in none of them is a typing error and stops the start.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

import msgspec
from dotenv import dotenv_values
from msgspec import Meta

from ipc.errors import StartError

PREFIX = "EMBEDLANE_"
# Settings that can be given as the name of a file that holds them: where containers' secrets are.
SECRETS = ("api_key", "redis_url")
DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
RUNNER = re.compile(r"onnx|torch|[A-Za-z_][\w.]*:[A-Za-z_]\w*")
# An ipc:// address is a path in sockaddr_un: 108 bytes with the terminating zero, less our longest file name.
MAX_RUN_DIR_BYTES = 80


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings. A count of 0 means "from the machine"; see the README's table, which a test compares with this."""

    host: Annotated[str, Meta(min_length=1, description="IPv4 address or name to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535, description="TCP port to listen on")] = 8000
    grpc_port: Annotated[
        int,
        Meta(ge=0, le=65535, description="TCP port for gRPC, served by a process of its own (docs/grpc.md); 0: none"),
    ] = 0
    frontends: Annotated[
        int, Meta(ge=0, le=256, description="HTTP front-end processes; 0: half the cores, two at least")
    ] = 0
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Meta(description="where the model runs; auto takes CUDA if there is one, and cuda never falls back"),
    ] = "auto"
    runner: Annotated[
        str,
        Meta(description="what runs the model: onnx, torch, or one of your own as `module:function` (docs/runners.md)"),
    ] = "onnx"
    precision: Annotated[
        Literal["auto", "fp32", "int8", "fp16"],
        Meta(description="the bundle's graph to run; auto is fp32, and on CUDA fp16 where the bundle has it"),
    ] = "auto"
    model: Annotated[
        str, Meta(min_length=1, description="Hugging Face id, model folder, ONNX file or bundle folder")
    ] = DEFAULT_MODEL
    checkpoint: Annotated[
        str, Meta(description="folder with the weights for the runner torch; empty: those of `EMBEDLANE_MODEL`")
    ] = ""
    api_key: Annotated[
        str,
        Meta(description="key clients must send; empty: made once and kept in `EMBEDLANE_DATA_DIR/api-key`"),
    ] = ""
    redis_url: Annotated[
        str, Meta(description="Redis that all machines share for limits and cache; empty: each machine for itself")
    ] = ""
    cache_mb: Annotated[
        int, Meta(ge=0, le=1 << 20, description="MiB of vectors that each front end keeps; 0: no cache, Redis neither")
    ] = 32
    cache_ttl_s: Annotated[int, Meta(ge=1, le=31_536_000, description="how long Redis keeps a vector, in seconds")] = (
        86_400
    )
    limit_rpm: Annotated[
        int, Meta(ge=0, le=1 << 40, description="requests a minute of a key without limits of its own; 0: no limit")
    ] = 0
    limit_rph: Annotated[
        int, Meta(ge=0, le=1 << 40, description="requests an hour of a key without limits of its own; 0: no limit")
    ] = 0
    limit_tpm: Annotated[
        int, Meta(ge=0, le=1 << 40, description="tokens a minute of a key without limits of its own; 0: no limit")
    ] = 0
    limits_bypass: Annotated[bool, Meta(description="limit nobody, for load tests")] = False
    metrics_key: Annotated[bool, Meta(description="`/metrics` asks for a key, as all that costs something does")] = (
        False
    )
    tracing: Annotated[
        bool, Meta(description="spans of requests, sent as OpenTelemetry's `OTEL_*` variables say (docs/tracing.md)")
    ] = False
    run_dir: Annotated[
        str,
        Meta(description="sockets, locks and slab, on a tmpfs; empty: `/dev/shm/embedlane-<uid>-<port>`"),
    ] = ""
    data_dir: Annotated[str, Meta(min_length=1, description="prepared bundles and the generated key")] = "data"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="least level that is logged")
    ] = "info"
    lanes: Annotated[
        int, Meta(ge=0, le=256, description="batches under way at once; 0: the cores on a CPU, 2 on CUDA (1 in fp32)")
    ] = 0
    max_batch_rows: Annotated[int, Meta(ge=1, le=4096, description="most texts in a batch")] = 16
    max_batch_tokens: Annotated[int, Meta(ge=1, le=1 << 20, description="most tokens in a batch")] = 512
    max_wait_ms: Annotated[
        float, Meta(ge=0, le=1000, description="longest a text waits for company while another lane works")
    ] = 2.0
    queue_items: Annotated[
        int, Meta(ge=1, le=1 << 20, description="most texts that wait, for each priority; a key gets what is free")
    ] = 32768
    max_queue_ms: Annotated[
        int, Meta(ge=1, le=3_600_000, description="a request that would wait longer for its turn is refused with 429")
    ] = 30_000
    slab_rows: Annotated[int, Meta(ge=16, le=1 << 20, description="vectors the shared memory holds")] = 8192
    request_timeout_ms: Annotated[
        int,
        Meta(ge=1, le=3_600_000, description="a request's deadline unless `X-Request-Timeout-Ms` says less"),
    ] = 30_000
    engine_grace_ms: Annotated[
        int,
        Meta(ge=0, le=600_000, description="how long requests wait for an engine that is away before 503"),
    ] = 10_000
    engine_stall_ms: Annotated[
        int, Meta(ge=100, le=600_000, description="an engine that answers nothing for so long is done without")
    ] = 10_000
    engine_hang_ms: Annotated[
        int,
        Meta(ge=1000, le=3_600_000, description="an engine that hangs for so long, or a batch of it, is killed"),
    ] = 30_000
    max_body_bytes: Annotated[int, Meta(ge=1024, description="largest request body")] = 8 << 20
    max_inputs: Annotated[int, Meta(ge=1, description="most texts in a request")] = 2048
    max_chars: Annotated[
        int, Meta(ge=1, description="longest text that is tokenized whole; a longer one only with truncation")
    ] = 65_536
    token_input: Annotated[
        Literal["reject", "model", "cl100k"],
        Meta(description="token ids as OpenAI's `input`: refused, taken as this model's, or decoded as cl100k's"),
    ] = "reject"  # noqa: S105 - no password

    def __repr__(self) -> str:
        """Name the table without its values: one of them is a secret."""
        return "Settings(...)"

    @property
    def run_path(self) -> Path:
        """Folder of sockets, locks and slab."""
        return Path(self.run_dir or f"/dev/shm/embedlane-{os.getuid()}-{self.port}")  # noqa: S108

    @property
    def data_path(self) -> Path:
        """Folder of bundles and the generated key."""
        return Path(self.data_dir).absolute()

    @property
    def frontend_count(self) -> int:
        """Front ends to start."""
        return self.frontends or max(2, cores() // 2)

    @property
    def slab_parts(self) -> int:
        """Parts that the slab is in: one for each front end, that of gRPC too, and one that is left."""
        return self.frontend_count + bool(self.grpc_port) + 1

    @property
    def slab_share(self) -> int:
        """Rows of the slab that one front end may have before others go first."""
        return self.slab_rows // self.slab_parts

    @property
    def most_held(self) -> int:
        """Rows that one front end may keep for long, whatever its readers do.

        Half its share at least is left for rows that come and go, and however those kept by all front ends are
        scattered, an extent for a whole batch is free between them.
        """
        return self.slab_share // max(2, self.max_batch_rows)


def cores() -> int:
    """Cores this process may use (the affinity mask, not the machine's count)."""
    return len(os.sched_getaffinity(0))


def setting_names() -> dict[str, str]:
    """Every environment name with its help text, in the table's order."""
    hints = get_type_hints(Settings, include_extras=True)
    return {PREFIX + name.upper(): hints[name].__metadata__[0].description for name in Settings.__struct_fields__}


def load_settings(environment: Mapping[str, str] | None = None, env_file: Path = Path(".env")) -> Settings:
    """Read the table. Raises StartError for an unknown name or a bad value, in one sentence that names it."""
    environment = os.environ if environment is None else environment
    in_file = {name: value or "" for name, value in dotenv_values(env_file).items()}
    given = {**in_file, **environment}
    # An empty value means "not set": compose files and shells pass variables through that way.
    ours = {n.removeprefix(PREFIX).lower(): v for n, v in given.items() if n.startswith(PREFIX) and v}
    _read_secrets(ours)
    for name in ours.keys() - set(Settings.__struct_fields__):
        raise StartError(f"{PREFIX}{name.upper()} is no setting of Embedlane; the README lists those there are.")
    try:
        settings = msgspec.convert(ours, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise StartError(_explain(error)) from None
    _check(settings)
    return settings


def _read_secrets(ours: dict[str, str]) -> None:
    """Replace each `_file` by what the file holds; a value that is given as such wins."""
    for name in SECRETS:
        path = ours.pop(f"{name}_file", None)
        if path is None or name in ours:
            continue
        fault = "it is empty"
        try:
            ours[name] = Path(path).read_text().strip()
        except OSError as error:
            fault = str(error.strerror)
        except UnicodeDecodeError:
            fault = "it is no text"
        if not ours.get(name):
            raise StartError(
                f"{PREFIX}{name.upper()}_FILE names {path}, which cannot be read ({fault}): "
                "correct the path, or the file and who may read it."
            )


def _explain(error: msgspec.ValidationError) -> str:
    """Turn msgspec's "Expected `int` <= 65535 - at `$.port`" into a sentence with the variable's name."""
    reason, _, path = str(error).partition(" - at ")
    field = re.sub(r"[`$.]", "", path)
    choices = re.search(r"Literal\[(.*?)\]", str(Settings.__annotations__.get(field, "")))
    if choices:
        reason = f"Choose one of {choices[1]}"
    return f"{PREFIX}{field.upper()} is not valid: {reason[0].lower()}{reason[1:]}."


def _check(settings: Settings) -> None:
    if ":" in settings.host:
        raise StartError("EMBEDLANE_HOST must be an IPv4 address or a name: IPv6 is not supported.")
    if not RUNNER.fullmatch(settings.runner):
        raise StartError("EMBEDLANE_RUNNER is not valid: choose onnx or torch, or name your own as module:function.")
    if len(os.fsencode(settings.run_path.absolute())) > MAX_RUN_DIR_BYTES:
        raise StartError(
            f"EMBEDLANE_RUN_DIR is longer than {MAX_RUN_DIR_BYTES} bytes, too long for a Unix socket's path: "
            "choose a shorter one."
        )
    if settings.slab_rows < 2 * settings.max_batch_rows * settings.slab_parts:
        raise StartError(
            "EMBEDLANE_SLAB_ROWS is too small: every front end's share must hold two batches, so give at least "
            f"{2 * settings.max_batch_rows * settings.slab_parts}."
        )
