"""Make a model bundle: fetch → checkpoint → graph → verify → publish, and only then is there a bundle.

    python -m tools.prepare [SOURCE] [--precision fp32|int8|fp16]... [--out FOLDER] [--force] [--trust-remote-code]

Each stage is the module of its name; this one has the order. A bundle is built in a hidden
folder beside its place and renamed into it, so an interrupted run leaves no half bundle and is simply repeated. An fp32
graph is always made: it is held against the references, and other precisions are held against it.
"""

# No numpy, onnx or onnxruntime up here: every start of the server asks for its bundle, finds it in place nearly
# always, and must not wait 0.5 s for libraries that only building needs. `_build` imports them.
import argparse
import hashlib
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import msgspec

from ipc.bundle import (
    GRAPHS,
    LAYOUTS,
    MANIFEST,
    TOKENIZER,
    Bundle,
    FileRecord,
    Loss,
    Manifest,
    Parity,
    Precision,
    hash_file,
    load_bundle,
    locate_bundle,
)
from ipc.errors import StartError
from ipc.settings import DEFAULT_MODEL, load_settings
from tools.fetch import WEIGHTS, Fetched, Say, fetch, find_local
from tools.publish import hidden, locked, publish, remove

if TYPE_CHECKING:
    from tools.checkpoint import Checkpoint
    from tools.foreign import Foreign


def ensure_bundle(model: str, data_dir: Path, *, precision: Precision = "fp32", say: Say = print) -> Path:
    """The folder of the bundle of `model`, made first if there is none or it has no graph of `precision`.

    `model` is a bundle's folder, a model's folder, an ONNX file, or a Hugging Face id. A bundle in place is only looked
    at, not hashed: a start costs milliseconds. One whose graph takes texts of one length only is made again, and kept
    where that fails. Raises StartError if there is no such model or it cannot be served, and
    for a bundle's folder without that graph: it does not hold what another graph is made from.
    """
    if (Path(model) / MANIFEST).is_file():
        load_bundle(Path(model), verify=False).graph(precision)
        return Path(model)
    target = bundle_folder(model, data_dir)
    there = _usable(target, model, verify=False)
    if there is None or precision not in there.precisions:
        prepare(model, target, precisions=[precision], say=say)
    elif _is_outdated(there):
        say(f"note       {target} takes texts of one length in a batch, which is slower: it is made again")
        try:
            prepare(model, target, force=True, say=say)
        except StartError as error:
            say(f"note       it stays as it is: {error}")
    return target


def _is_outdated(bundle: Bundle) -> bool:
    """Whether its fp32 graph was built here, as what it was compared with tells, before there was the mixed layout."""
    return bundle.layout("fp32") == "dense" and bundle.parity.reference.startswith(("numpy ", "sentence-transformers "))


def bundle_folder(model: str, data_dir: Path) -> Path:
    """Where the bundle of `model` belongs.

    A model's folder may be edited: its files' sizes and times are part of the name, so that a bundle never
    outlives what it was made from.
    """
    local = find_local(model)
    if local is None:
        return locate_bundle(model, data_dir)
    folder = local.folder.resolve()
    digest = hashlib.sha256(str(folder).encode())
    for path in local.files:
        status = path.stat()
        digest.update(f"\n{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    return data_dir / "bundles" / f"{folder.name}-{digest.hexdigest()[:12]}"


def prepare(
    source: str,
    target: Path,
    *,
    precisions: Collection[Precision] = (),
    force: bool = False,
    trust_code: bool = False,
    say: Say = print,
) -> Bundle:
    """Make the bundle of `source` at `target`, unless it is there already; `force` makes it again.

    What a bundle that is there has besides `precisions` is made again as well. Python code that comes with a model is
    run only with `trust_code`. Raises StartError if the model cannot be had or served, its vectors fail verification,
    or `target` is taken.
    """
    started = time.monotonic()
    target = target.resolve()
    _check_replaceable(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target, say):
            there = _usable(target, source, verify=True)
            if there is not None and not force and set(precisions) <= there.precisions.keys():
                say(f"ready      {target} (already made; --force makes it again)")
                return there
            known = there.precisions if there is not None else {}
            wanted = [precision for precision in GRAPHS if precision in ("fp32", *precisions, *known)]
            parity = _build_and_publish(source, target, wanted, say, trust_code)
    except OSError as error:
        raise StartError(f"The bundle {target} cannot be written ({error}).") from error
    bundle = load_bundle(target, verify=False)
    megabytes = sum(record.bytes for record in bundle.files.values()) / 1e6
    seconds = time.monotonic() - started
    say(f"done       {target}: {megabytes:.0f} MB in {seconds:.1f} s, lowest cosine {parity.min_cosine:.7f}")
    return bundle


def _usable(target: Path, source: str, *, verify: bool) -> Bundle | None:
    """The bundle at `target` if it is whole and of `source`; None if it has to be made."""
    try:
        bundle = load_bundle(target, verify=verify)
    except StartError:
        return None
    local = find_local(source)
    if local is not None:
        # The name of the place tells folders apart; only a place that a person chose needs the weights' hash.
        same = not verify or bundle.revision == local.revision()
    else:
        same = bundle.id == source.partition("@")[0]
    return bundle if same else None


def _check_replaceable(target: Path) -> None:
    """Refuse to replace anything but a bundle: a mistyped --out must not cost a person's files."""
    if target.is_dir() and ((target / MANIFEST).is_file() or not any(target.iterdir())):
        return
    if target.exists():
        raise StartError(f"{target} exists and is not a model bundle: choose another --out, or remove it.")


def _build_and_publish(source: str, target: Path, precisions: list[Precision], say: Say, trust_code: bool) -> Parity:
    partial, scratch = hidden(target, "partial"), hidden(target, "scratch")
    remove(partial, scratch)  # left by a run that was killed: the lock is ours, so nobody uses them
    try:
        fetched = fetch(source, scratch, say, trust_code=trust_code)
        partial.mkdir()
        parity = _build(fetched, partial, precisions, say, trust_code)
        publish(partial, target)
    finally:
        remove(partial, scratch)
    return parity


def _build(fetched: Fetched, folder: Path, precisions: list[Precision], say: Say, trust_code: bool) -> Parity:
    """Write a whole bundle into `folder`."""
    # Here and not above: see the note at the imports.
    from tools.checkpoint import read_checkpoint, read_config  # noqa: PLC0415
    from tools.families import CONFIGS  # noqa: PLC0415
    from tools.graphs.encoder import write_graph  # noqa: PLC0415

    try:
        from tools.loss import measure_losses  # noqa: PLC0415
        from tools.verify import open_graph, verify  # noqa: PLC0415
    except ImportError as error:
        raise StartError(f"ONNX Runtime is not installed ({error}): install the extra `cpu` or `gpu`.") from None

    architecture = read_config(fetched.folder).get("model_type")
    if fetched.onnx or (isinstance(architecture, str) and architecture not in CONFIGS):
        return _build_foreign(fetched, folder, precisions, say, trust_code)
    checkpoint = read_checkpoint(fetched.folder)
    for note in checkpoint.notes:
        say(f"note       {note}")
    config = checkpoint.config
    say(
        f"building   {', '.join(precisions)}: {config.model_type}, {config.num_hidden_layers} layers, "
        f"{config.hidden_size} dimensions, {checkpoint.max_tokens} tokens, {checkpoint.pooling} pooling, "
        f"normalized: {checkpoint.normalize}"
    )
    for precision in precisions:
        write_graph(checkpoint, precision, folder)
    (folder / TOKENIZER).write_bytes(checkpoint.tokenizer)
    exact = open_graph(folder / GRAPHS["fp32"], checkpoint)
    parity = verify(exact, checkpoint, hash_file(fetched.folder / WEIGHTS), say)
    losses = measure_losses(folder, precisions[1:], exact, say)
    manifest = _describe(fetched, checkpoint, folder, parity, losses)
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    return parity


def _build_foreign(fetched: Fetched, folder: Path, precisions: list[Precision], say: Say, trust_code: bool) -> Parity:
    """The same for a graph that is not built here: exported, or a user's own."""
    from tools.export import export_graph  # noqa: PLC0415
    from tools.foreign import verify_foreign  # noqa: PLC0415
    from tools.own_graph import read_own_graph  # noqa: PLC0415

    if precisions != ["fp32"]:
        raise StartError(f"{fetched.id} is not of an architecture that is built here, so there is only fp32 of it.")
    local = find_local(str(fetched.onnx)) if fetched.onnx else None
    model: Foreign = read_own_graph(local) if local else export_graph(fetched.folder, say, trust_code=trust_code)
    for note in model.notes:
        say(f"note       {note}")
    say(
        f"wrapping   {GRAPHS['fp32']}: {model.architecture}, {model.dim} dimensions, {model.max_tokens} tokens, "
        f"{model.pooling} pooling, normalized: {model.normalize}"
    )
    (folder / GRAPHS["fp32"]).write_bytes(model.graph.SerializeToString(deterministic=True))
    (folder / TOKENIZER).write_bytes(model.tokenizer)
    parity = verify_foreign(folder / GRAPHS["fp32"], model, say)
    manifest = msgspec.structs.replace(_describe(fetched, model, folder, parity, {}), layouts={"fp32": "dense"})
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    return parity


def _describe(
    fetched: Fetched, checkpoint: "Checkpoint | Foreign", folder: Path, parity: Parity, losses: dict[str, Loss]
) -> Manifest:
    graphs: dict[Precision, str] = {precision: name for precision, name in GRAPHS.items() if (folder / name).exists()}
    return Manifest(
        id=fetched.id,
        revision=fetched.revision,
        architecture=checkpoint.architecture,
        dim=checkpoint.dim,
        max_tokens=checkpoint.max_tokens,
        vocab_size=checkpoint.vocab_size,
        pooling=checkpoint.pooling,
        normalize=checkpoint.normalize,
        files={
            name: FileRecord(sha256=hash_file(folder / name), bytes=(folder / name).stat().st_size)
            for name in (TOKENIZER, *graphs.values())
        },
        precisions={str(precision): name for precision, name in graphs.items()},
        parity=parity,
        layouts={precision: LAYOUTS[precision] for precision in graphs},
        losses=losses,
        prompts=checkpoint.prompts,
        default_prompt_name=checkpoint.default_prompt_name,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; gives the exit status: 0, 3 for what cannot be done, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tools.prepare", description="Make a model bundle.")
    parser.add_argument(
        "source",
        nargs="?",
        default=DEFAULT_MODEL,
        help="a model's folder, an ONNX file, or a Hugging Face id (org/name, org/name@revision); default: %(default)s",
    )
    parser.add_argument(
        "--out", type=Path, help="the bundle's folder; default: bundles/<name of the model> in EMBEDLANE_DATA_DIR"
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        action="append",
        default=[],
        help="also make a graph of this precision: int8 for a CPU, fp16 for a GPU; may be given twice",
    )
    parser.add_argument("--force", action="store_true", help="make it again even if it is there")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that comes with the model, to export it"
    )
    options = parser.parse_args(arguments)
    try:
        target = options.out or bundle_folder(options.source, load_settings().data_path)
        prepare(
            options.source,
            target,
            precisions=options.precision,
            force=options.force,
            trust_code=options.trust_remote_code,
            say=_say,
        )
    except StartError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return StartError.EXIT_CODE
    except KeyboardInterrupt:
        print("prepare: interrupted; nothing half made is left behind.", file=sys.stderr)
        return 130
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
