"""The ``fullspectrum`` command: a thin door to the functions of the package."""

import dataclasses
import inspect
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast, get_type_hints

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from typer.core import TyperGroup

from fullspectrum_ext import _core
from fullspectrum_ext._files import write_atomically
from fullspectrum_ext._progress import LateProgress
from fullspectrum_ext.experiments.bench import bench_model, bench_table, benched_shape, numbers
from fullspectrum_ext.experiments.comparison import (
    compare,
    comparison_rows,
    comparison_table,
    csv_text,
    score_rows,
)
from fullspectrum_ext.experiments.config import TrainConfig, load_config, to_toml
from fullspectrum_ext.experiments.data import DATASETS
from fullspectrum_ext.experiments.environment import information
from fullspectrum_ext.experiments.extras import MissingExtraError
from fullspectrum_ext.experiments.folder import RunFolder
from fullspectrum_ext.experiments.models import MODELS
from fullspectrum_ext.experiments.plan import load_plan
from fullspectrum_ext.experiments.progress import TrainingProgress
from fullspectrum_ext.experiments.pruning import prune_by_name
from fullspectrum_ext.experiments.report import read_study, write_report
from fullspectrum_ext.experiments.scoring import FileScore, draw_spectra, score_file
from fullspectrum_ext.experiments.suite import train as run_job
from fullspectrum_ext.experiments.summary import draw_figure, results_table
from fullspectrum_ext.experiments.sweep import Sweep, default_jobs, parse_shard
from fullspectrum_ext.experiments.sweep_view import (
    SweepProgress,
    failures_table,
    plan_table,
    sweep_line,
    sweep_table,
)
from fullspectrum_ext.pruning import methods


class _Commands(TyperGroup):
    """Shows what is wrong with the input in one red line, and leaves other errors as they are."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, TypeError, OSError) as error:
            Console(stderr=True, soft_wrap=True).print(
                f"error: {error}", style="red", markup=False, highlight=False
            )
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            Console(stderr=True).print("interrupted")
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def main() -> None:
    """Run the ``fullspectrum`` command."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fullspectrum {_core.build_info()['version']}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Prune, score and train sparse networks that are really sparse."""


def _settings_as_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one flag for each field of TrainConfig, in the place of ``**flags``."""
    signature = inspect.signature(command)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    kinds = get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        kind, default = kinds[field.name], field.default
        if isinstance(default, tuple):  # a list is written with commas
            kind, default = str, ",".join(map(str, default))
        option = typer.Option(
            f"--{field.name.replace('_', '-')}",
            help=f"{field.metadata['help']} Default: {default}.",
            rich_help_panel="Settings (each also a key of the TOML file)",
        )
        annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
        parameters.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
            )
        )
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _split_lists(flags: dict[str, Any]) -> dict[str, Any]:
    if flags["methods"] is not None:
        flags["methods"] = [method.strip() for method in flags["methods"].split(",")]
    if flags["seeds"] is not None:
        try:
            flags["seeds"] = [int(seed) for seed in flags["seeds"].split(",")]
        except ValueError as error:
            raise ValueError(
                f"seeds: expected whole numbers with commas between, got {flags['seeds']!r}"
            ) from error
    return flags


@app.command()
@_settings_as_flags
def train(
    *,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file of settings; flags win over it.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of all runs.")] = Path("runs"),
    name: Annotated[
        str | None,
        typer.Option("--name", help="Folder in it. Default: data, model, digest of the settings."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Throw away what the run's folder holds; start anew.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show-config", help="Print the settings as TOML and stop.")
    ] = False,
    **flags: Any,
) -> None:
    """Compare pruning methods: prune, train sparse, judge; one table and one folder of files.

    Without arguments: digits, an MLP at 95 % sparsity, PAGS over SNIP beside SNIP and ERK, three
    seeds. After an interruption the same command goes on where it was, to the same results bit for
    bit; when all is done it shows the results again.
    """  # noqa: DOC501 (the help is for people)
    settings = load_config(config, **_split_lists(flags)).resolved()
    if show:
        print(to_toml(dataclasses.asdict(settings)), end="")
        return
    folder = RunFolder(out / (name or _default_name(settings)))
    console = Console()
    console.print(f"Run folder: {escape(str(folder.path))}", soft_wrap=True)
    try:
        results = run_job(settings, folder, fresh=fresh, progress=TrainingProgress(console))
    except KeyboardInterrupt:
        console.print("Interrupted; the same command goes on from here.")
        raise typer.Exit(130) from None
    console.print(results_table(results))
    if not folder.figure.is_file():
        try:
            draw_figure(folder)
        except MissingExtraError as error:
            console.print(f"No {error}", markup=False, soft_wrap=True)


def _default_name(settings: TrainConfig) -> str:
    model = settings.model.replace(":", "-")  # of an import path; not in file names on Windows
    return f"{settings.data}-{model}-{settings.digest()}"


@app.command()
def sweep(
    plan: Annotated[Path, typer.Argument(help="The TOML file.")],
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder of all sweeps.")] = Path("runs"),
    name: Annotated[
        str | None,
        typer.Option("--name", help="Folder in it. Default: the plan's name, or its file's."),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs",
            help="Runs at a time, each in a process of its own; 0: as many as there are CPUs for "
            "the plan's threads, or 1 on a GPU.",
        ),
    ] = 0,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Only runs I, I+N, I+2N, ... of the plan: for N machines that share the folder. "
            "Default: all, or under torchrun a shard for each of its processes.",
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Throw away what the runs' folders hold; start them anew."),
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Show the runs and how far each is, and stop.")
    ] = False,
) -> None:
    """Run a plan: methods x sparsities x seeds x models, several at a time, resumable.

    A plan is a TOML file with the keys of *train*'s, and lists *models* and *sparsities* in place
    of *model* and *sparsity*. Each run has a folder of its own below OUT/NAME/runs; all that are
    finished are lines of OUT/NAME/runs.jsonl, which *fullspectrum report* reads.

        models = ["mlp", "convnet"]
        sparsities = [0.9, 0.95, 0.98]
        methods = ["pags:snip", "snip", "erk", "random"]
        seeds = [0, 1, 2, 3, 4]
        epochs = 40

    Tables *[[grid]]* run one such grid each, with their keys over those above the first of them.
    Tables *[[published]]* (model, method, sparsity, accuracy in percent, spread, source) are
    numbers of papers for the report. *name* and *title* are those of the sweep.

    After an interruption, even a kill, the same command goes on where it was, to the same results.
    A run that fails does not stop the others; the command then ends with exit code 1. A plan may
    grow: what is finished stays.
    """  # noqa: DOC501 (the help is for people)
    if jobs < 0:
        raise ValueError(f"--jobs: expected at least 0, got {jobs}")
    wanted = load_plan(plan)
    task = Sweep(wanted, out / (name or wanted.name), shard=parse_shard(shard))
    if not fresh:
        task.check()
    todo = sum(fresh or task.status(config) != "finished" for config in task.runs)
    console = Console()
    console.print(sweep_line(task, todo), markup=False, highlight=False, soft_wrap=True)
    if show:
        console.print(plan_table(task))
        return
    jobs = min(jobs or default_jobs(wanted), max(todo, 1))
    progress = SweepProgress(console, todo)
    try:
        with progress.bars:
            outcomes = task.run(jobs, fresh=fresh, report=progress.end_run)
    except KeyboardInterrupt:
        console.print("Interrupted; the same command goes on from here.")
        raise typer.Exit(130) from None
    finished = task.gather()
    absent = len(wanted.runs) - len(finished)
    if not absent or len(task.runs) == len(wanted.runs):
        console.print(sweep_table(finished, wanted.title))
    if absent:
        console.print(f"{absent} of the plan's {len(wanted.runs)} runs are not finished.")
    else:
        console.print(f"For more: fullspectrum report {escape(str(task.path))}", soft_wrap=True)
    if any(outcome.status == "failed" for outcome in outcomes):
        console.print(failures_table(outcomes))
    if task.is_failed(outcomes):
        raise typer.Exit(1)


@app.command()
def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="Folders of sweeps, run folders of *fullspectrum train*, or files of runs "
            "(runs.jsonl).",
        ),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write to. Default: that of the first PATH."),
    ] = None,
) -> None:
    """Write a report of finished runs: report.html, which needs nothing but itself, and report.md.

    Accuracy against sparsity, PAGS against its bases (paired over seeds), whether the coordinate
    predicts accuracy once density is accounted for, how it moves in training, time and memory.
    """
    study = read_study(paths)
    first = paths[0] if paths[0].is_dir() else paths[0].parent
    for file in write_report(study, out or first):
        Console().print(f"Written: {escape(str(file))}", soft_wrap=True)


@app.command()
def score(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Checkpoints: .safetensors, torch files, an index of shards, a folder; or masks.",
        ),
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every figure.")] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV, one line a layer, with every single figure.")
    ] = False,
    comparing: Annotated[
        bool,
        typer.Option("--compare", help="Show the distances between two files, layer by layer."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write what would be printed to this file, when all is done."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw σ1, σ2 and the Ramanujan bound to this PNG."),
    ] = None,
    flavor: Annotated[
        str, typer.Option("--flavor", help="Whose definition: neurips or iclr.")
    ] = "neurips",
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            help="Only layers that match a glob pattern. Default: all but embeddings and lm_head.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Leave out layers that match one.")
    ] = None,
    skip_dense: Annotated[
        bool, typer.Option("--skip-dense", help="Leave out layers of which nothing is pruned.")
    ] = False,
) -> None:
    r"""Show the full-spectrum coordinate of checkpoints, layer by layer.

    Files are read as data, layer by layer: no code in them is run, and memory follows the largest
    layer. A layer is a tensor called *weight* with two or four dimensions; where it is zero, it
    counts as pruned. Masks are known as X_orig and X_mask (torch.nn.utils.prune),
    parametrizations.X (torch.ao), X_mask or mask beside X, mask.pth beside model.pth (open_lth),
    the pruner of rigl-torch, the bitmasks of compressed-tensors, and as this package's own. Layers
    called *embed\*, wte, wpe, shared, lm_head, word_emb\*, tok_emb\*, pos_emb\** are left out
    unless *--include* names them.

    The pattern is that of the mask: N:M (at most N of M neighbouring inputs are kept, in every
    group), RxC blocks, rows, columns, kernels, dense, empty or unstructured.
    """  # noqa: DOC501 (the help is for people)
    if as_json and as_csv:
        raise ValueError("--json, --csv: expected at most one of them")
    if comparing and len(set(files)) != 2:
        raise ValueError(f"--compare: expected two different files, got {len(set(files))}")
    _check_outputs(files, out=out, plot=plot)
    scores: dict[str, FileScore] = {}
    with LateProgress() as progress:
        for file in files:
            progress.start(str(file))
            scores[str(file)] = score_file(
                file,
                include=include or None,
                exclude=exclude or None,
                skip_dense=skip_dense,
                advance=progress.advance,
                flavor=flavor,  # type: ignore[arg-type]  # checked there, in words
            )
    comparison = compare(scores) if comparing else None
    if plot is not None:
        draw_spectra({file: score.spectrum for file, score in scores.items()}, plot)
    if as_json:
        found = comparison or {file: score.to_dict() for file, score in scores.items()}
        _put(json.dumps(found, indent=2) + "\n", out)
    elif as_csv:
        _put(csv_text(comparison_rows(comparison) if comparison else score_rows(scores)), out)
    else:
        # In a file there is no terminal whose width to keep to.
        console = Console() if out is None else Console(file=io.StringIO(), width=160)
        if comparison is not None:
            console.print(comparison_table(comparison))
        else:
            for title, found_score in scores.items():
                console.print(escape(title), style="bold", soft_wrap=True)
                console.print(found_score.spectrum.table(found_score.patterns))
        if out is not None:
            _put(cast(io.StringIO, console.file).getvalue(), out)


def _check_outputs(files: list[Path], *, out: Path | None, plot: Path | None) -> None:
    """Raise ValueError, before any work, unless the files to write are other files than any."""
    taken = {file.resolve() for file in files}
    for name, path in (("--out", out), ("--plot", plot)):
        if path is None:
            continue
        if path.is_dir():
            raise ValueError(f"{name}: expected a file to write, got the folder {path}")
        if any(parent.is_file() for parent in path.parents):
            raise ValueError(f"{name}: expected a file in a folder, got {path}")
        if path.resolve() in taken:
            raise ValueError(f"{name}: {path} is one of the other files of this command")
        taken.add(path.resolve())
    if plot is not None and plot.suffix != ".png":
        raise ValueError(f"--plot: expected a name that ends in .png, got {plot}")


def _put(text: str, out: Path | None) -> None:
    """Print a text, or write it to a file in one step."""
    if out is None:
        print(text, end="")
    else:
        write_atomically(out, text.encode())


@app.command()
def prune(
    *,
    model: Annotated[
        str,
        typer.Option("--model", help=f"One of {', '.join(MODELS)}, or package.module:function."),
    ] = "mlp",
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Checkpoint to load into the model first.")
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help=f"What the method looks at: one of {', '.join(DATASETS)}, none, or "
            "package.module:function that returns batches (inputs, targets).",
        ),
    ] = "digits",
    data_path: Annotated[
        str, typer.Option("--data-path", help="Folder that the data set is in, or the text file.")
    ] = "",
    method: Annotated[
        str, typer.Option("--method", help=f"One of {', '.join(methods())}, or pags:BASE.")
    ] = "snip",
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", help="Fraction to remove. Default: 0.95.")
    ] = None,
    density: Annotated[
        float | None, typer.Option("--density", help="Fraction to keep, in place of --sparsity.")
    ] = None,
    candidates: Annotated[
        int, typer.Option("--candidates", help="Masks that pags draws and chooses from.")
    ] = 100,
    seed: Annotated[
        int, typer.Option("--seed", help="Of the model's weights and of the method.")
    ] = 0,
    out: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("masks.safetensors"),
) -> None:
    """Prune a model, write the masks (safetensors) and show them layer by layer."""
    if sparsity is None and density is None:
        sparsity = 0.95
    with Progress(console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("candidates", visible=False)
        masks = prune_by_name(
            model,
            method,
            sparsity=sparsity,
            density=density,
            data=data,
            data_path=data_path,
            weights=weights,
            candidates=candidates,
            seed=seed,
            progress=lambda done, of: bars.update(bar, completed=done, total=of, visible=True),
        )
    masks.save(out)
    console = Console()
    console.print(masks.table())
    console.print(f"Masks written to {escape(str(out))}", soft_wrap=True)


@app.command()
def bench(
    *,
    model: Annotated[
        str,
        typer.Option("--model", help=f"One of {', '.join(MODELS)}, or package.module:function."),
    ] = "mlp",
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help=f"Take the shape of one input from: {', '.join(DATASETS)} (the default)."
        ),
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option("--input-shape", help="Or give it, with commas: 3,32,32.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", help="Inputs in a step.")] = 128,
    sparsity: Annotated[
        str, typer.Option("--sparsity", help="Sparsities of each layer, with commas.")
    ] = "0.8,0.9,0.95,0.98,0.99",
    threads: Annotated[
        int, typer.Option("--threads", help="CPU threads; 0: as many as torch takes.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time every layer dense, dense with a mask and truly sparse, at its shape in the model.

    A step is forward and both gradients, without the optimizer; bytes are those of weights,
    gradients, Adam's state, masks and indices. The break-even is the sparsity from which on the
    sparse layer is the faster one; the choice is that of *sparsify(backend="auto", example=...)*.
    """
    with LateProgress() as progress:
        found = bench_model(
            model,
            shape=benched_shape(data, input_shape),
            batch=batch,
            sparsities=numbers("--sparsity", sparsity, float),
            threads=threads,
            progress=progress,
        )
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        Console().print(bench_table(found))


@app.command()
def info() -> None:
    """Show versions, how the package was built, and what is off and why."""
    table = Table(show_header=False, box=None)
    for row in information().items():
        table.add_row(*map(escape, row))
    Console().print(table, soft_wrap=True)
