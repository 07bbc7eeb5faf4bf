"""A vector for each row of a file: `python -m tools.embed IN OUT` (docs/bulk.md).

In this process, with the settings that the engine has, or by a server with --server. A run that was killed goes on
where it ended when the same command is given again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import msgspec

from ipc.bundle import Precision, load_bundle
from ipc.errors import StartError
from ipc.settings import Settings, load_settings
from tools.embed.job import WINDOW_ROWS, Input, Model, Options, Output, embed
from tools.embed.remote import Remote

if TYPE_CHECKING:
    from tools.embed.local import Local


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status: 0, 3 for what cannot be done, 130 for Ctrl-C."""
    given = _parser().parse_args(arguments)
    options = Options(
        source=given.source,
        out=given.out,
        input=given.input,
        output=given.output,
        text=given.text,
        keep=tuple(given.keep),
        prompt=given.prompt,
        truncate=not given.no_truncate,
        skip_bad=given.skip_bad,
        window=given.window,
        restart=given.restart,
        quiet=given.quiet,
    )
    try:
        settings = load_settings()
        if given.server is None:
            backend, model = open_local(settings)
            _, said = embed(options, backend, model)
        else:
            server = Remote(given.server, given.key or settings.api_key, given.in_flight, given.patience)
            _, said = embed(options, server, Model(server.model, server.most_texts))
    except StartError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or options.out}: {error.strerror or error}.")
    except KeyboardInterrupt:
        print("\nembed: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    if not options.quiet:
        print(said, file=sys.stderr)
    return 0


def open_local(settings: Settings) -> tuple[Local, Model]:
    """The runner that the engine would have, in this process; its model's bundle is made where there is none."""
    # Here and not above: a server needs none of this.
    from engine.runners import open_runner  # noqa: PLC0415
    from tools.embed.local import Local, with_bulk_batches  # noqa: PLC0415
    from tools.prepare import ensure_bundle  # noqa: PLC0415
    from tools.weights import ensure_weights  # noqa: PLC0415

    folder = ensure_bundle(settings.model, settings.data_path, precision=_graph(settings), say=_say)
    if settings.runner == "torch" and not settings.checkpoint:
        weights = ensure_weights(settings.model, settings.data_path)
        settings = msgspec.structs.replace(settings, checkpoint=str(weights))
    bundle = load_bundle(folder)
    runner = open_runner(settings, bundle)
    return Local(with_bulk_batches(settings, runner.device), bundle, runner), Model(bundle.id, settings.max_inputs)


def _graph(settings: Settings) -> Precision:
    """The graph that the runner will ask the bundle for."""
    if settings.runner != "onnx":
        return "fp32"
    if settings.precision != "auto":
        return settings.precision
    from engine.runners.onnx import choose_device  # noqa: PLC0415

    return "fp16" if choose_device(settings.device) == "cuda" else "fp32"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.embed", description="A vector for each row of a file.")
    parser.add_argument("source", metavar="IN", help="the input; - for standard input")
    parser.add_argument("out", metavar="OUT", type=Path, help="the output, which appears when it is whole")
    add = parser.add_argument
    add("--from", dest="input", choices=get_args(Input), help="format of IN, where its name does not tell")
    add("--to", dest="output", choices=get_args(Output), help="format of OUT, where its name does not tell")
    add("--text", default="text", metavar="FIELD", help="the field with the text; default: %(default)s")
    add("--keep", default=[], action="append", metavar="FIELD", help="a field to put beside the vector; repeatable")
    add("--prompt", metavar="NAME", help="the model's prompt to put before each text; default: the model's default")
    add("--no-truncate", action="store_true", help="a text that is too long is an error; default: it is cut")
    add("--skip-bad", action="store_true", help="a row without a text gets no vector; default: it ends the run")
    add("--window", type=_count, default=WINDOW_ROWS, metavar="N", help="rows written at once; default: %(default)s")
    add("--restart", action="store_true", help="begin anew, and replace what is there")
    add("--quiet", action="store_true", help="say nothing unless something is wrong")
    server = parser.add_argument_group("by a server")
    server.add_argument("--server", metavar="URL", help="an Embedlane server to ask, as low-priority work")
    server.add_argument("--key", default="", help="its key; default: EMBEDLANE_API_KEY")
    server.add_argument("--in-flight", type=_count, default=4, metavar="N", help="requests at once; default: 4")
    server.add_argument(
        "--patience",
        type=float,
        default=300.0,
        metavar="S",
        help="seconds without an answer to give up after; 300",
    )
    return parser


def _count(given: str) -> int:
    count = int(given)
    if count < 1:
        raise argparse.ArgumentTypeError("it must be 1 or more")
    return count


def _fail(reason: str) -> int:
    print(f"embed: {reason}", file=sys.stderr)
    return StartError.EXIT_CODE


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
