"""The commands and options of the command line, with their help.

Nothing heavy is imported here, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from .completion import SHELLS
from .module_options import add_example_option, add_module_options
from .options.analysis import add_analysis_options, add_report_options
from .options.draft import add_draft_options
from .options.placement import add_placement_options
from .parser import Parser
from .texts.options import add_evaluation_options, add_json_file, add_reading_options

Run = Callable[[argparse.Namespace], int]

MODEL_HELP = "a Hugging Face model directory, a Hub id, or demo for the built-in model"
ANY_MODEL_HELP = MODEL_HELP + "; or package.module:callable, which returns any torch.nn.Module"


def build_parser(commands: Mapping[str, Run]) -> Parser:
    """The parser of the whole command line.

    Args:
        commands: name of a command -> function that runs it and returns the exit code.
    """
    parser = Parser(
        prog="fxprune",
        description="Make PyTorch models smaller by structured pruning: trace, couple, score, prune, export.",
        epilog="`fxprune help COMMAND` explains a command. Exit codes: 0 done, 1 failed, 2 bad request.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('fxprune')}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (
        _add_trace, _add_apply, _add_analyze, _add_export, _add_eval, _add_bench, _add_passes, _add_formats,
        _add_report, _add_recipe_command, _add_push, _add_doctor, _add_demo, _add_help, _add_completion,
    ):  # fmt: skip
        add(subparsers)
    for name, run in commands.items():
        subparsers.choices[name].set_defaults(run=run, command=name, parser=subparsers.choices[name])
    parser.commands = dict(subparsers.choices)
    return parser


def _command(commands: Any, name: str, text: str, *, json_file: bool = False) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text.partition(". ")[0].rstrip("."), description=text
    )
    if json_file:
        add_json_file(parser)
    else:
        parser.add_argument("--json", action="store_true", help="print the result on stdout as one JSON object")
    told = parser.add_argument_group("what is told on stderr, besides warnings and errors")
    loudness = told.add_mutually_exclusive_group()
    loudness.add_argument("-v", "--verbose", action="store_true", help="every step, and the seconds that it took")
    loudness.add_argument("-q", "--quiet", action="store_true", help="nothing")
    told.add_argument("--log-file", metavar="FILE", help="append every step to FILE, with the time")
    told.add_argument("--debug", action="store_true", help="every step, what libraries print, a traceback on errors")
    return parser


def _add_code_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trust-remote-code", action="store_true", help="allow code that comes with the model to run")
    parser.add_argument(
        "--merge-adapter",
        action="store_true",
        help="merge an adapter that comes with the model (adapter_config.json) into a copy of its weights, in TMPDIR, "
        "and begin from that",
    )


def _add_pickle_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-pickle", action="store_true", help="allow pickled weights (*.bin) when there are no safetensors"
    )


def _add_trace(commands: Any) -> None:
    about = "Show the operators, axes and groups of coupled channels of a model. No weights are read."
    parser = _command(commands, "trace", about)
    parser.add_argument("model", metavar="MODEL", help=ANY_MODEL_HELP)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--ir", action="store_true", help="print the graph and its groups as text")
    what.add_argument(
        "--why", nargs=2, metavar=("A", "B"), help="show why weights A and B shrink together, operator by operator"
    )
    _add_full(parser)
    parser.add_argument("--dot", metavar="FILE", help="write the coupling graph as a Graphviz file")
    add_example_option(parser)
    _add_code_option(parser)


def _add_full(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--full", action="store_true", help="a row for each layer, those that are alike too")


def _add_shared(parser: argparse.ArgumentParser) -> None:
    shared = parser.add_argument_group("options for all passes that have an option of this name")
    shared.add_argument("--ratio", metavar="R", help="share of the units of each group to remove, in [0, 1)")
    shared.add_argument(
        "--target",
        metavar="T",
        help="size of the result: params=0.8, params=5e9, bytes=..., macs=..., latency=..., memory=6GB@8192x4 (with "
        "the key-value cache of 4 sequences of 8192 tokens), active=... parameters of a mixture of experts; several "
        "sizes, each a part of the one before: params=0.9,0.8,0.7 with --out 'DIR/{params}'",
    )
    shared.add_argument("--tolerance", metavar="R", help="how far from the target the result may be, such as 0.03")
    shared.add_argument(
        "--layers",
        metavar="START:END",
        help="prune these layers only, END exclusive; 1:-1 spares first and last",
    )
    shared.add_argument("--within", metavar="PART", help="prune only what lies wholly in modules of this name")
    shared.add_argument("--multiple-of", metavar="N", help="keep a multiple of N units of each group; or auto")
    shared.add_argument("--for", dest="runtime", metavar="RUNTIME", help="counts that it needs: gguf-q8, vllm, ...")
    shared.add_argument(
        "--train-on",
        metavar="TOKENS",
        help="what recovery learns of rows: all tokens, or those of answers alone; auto (default): answers of "
        "conversations and of prompts with completions, else all",
    )
    shared.add_argument("--seed", metavar="N", help="random seed")
    shared.add_argument(
        "--channels",
        choices=("true", "false"),
        help="prune the residual width; left out: false for Hugging Face models, true for package.module:callable",
    )


def _add_apply(commands: Any) -> None:
    parser = _command(
        commands,
        "apply",
        "Make a model smaller. Runs the passes of a pipeline. A Hugging Face model becomes a model directory that "
        "transformers loads; any other module becomes a safetensors file and an exported program (.pt2).",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help=ANY_MODEL_HELP)
    _add_recipe(parser)
    _add_pipeline(parser)
    _add_shared(parser)
    text = parser.add_argument_group(
        "data: text (a file; rows in .jsonl, .json, .csv, .tsv, .parquet or .arrow; .gz or .zst of these; a `datasets` "
        "id or directory), also conversations and instructions; for models that are not causal language models also a "
        "folder of images or sounds; for any model a .safetensors or .npz file of inputs by argument name, or "
        "package.module:function that yields batches"
    )
    text.add_argument(
        "--calib", action="append", metavar="DATA", help="calibration data: scores are computed on it; may be repeated"
    )
    text.add_argument(
        "--data", action="append", metavar="DATA", help="recovery data: recovery passes train on it; may be repeated"
    )
    add_reading_options(text, several=True)
    text.add_argument("--scores", metavar="FILE", help="use the scores in FILE; save them if it does not exist")
    add_module_options(parser)
    _add_output(parser, required=False)
    _add_run(parser)
    _add_code_option(parser)
    _add_pickle_option(parser)


def _add_analyze(commands: Any) -> None:
    about = "Measure what cuts cost: of each group and layer alone, and of whole budgets. The model stays as it is."
    parser = _command(commands, "analyze", about, json_file=True)
    parser.add_argument("model", metavar="MODEL", help=ANY_MODEL_HELP)
    add_analysis_options(parser)
    add_placement_options(parser)
    _add_code_option(parser)
    _add_pickle_option(parser)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    recipe = parser.add_argument_group("options that a file gives; see `fxprune recipe`")
    recipe.add_argument(
        "--recipe", metavar="FILE", help="a YAML file of options, or a name that `fxprune recipe` lists; those here win"
    )
    recipe.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="set a variable of the recipe; may be repeated"
    )


def _add_pipeline(parser: argparse.ArgumentParser) -> None:
    """What is removed: what passes choose, or what another run removed."""
    parser.add_argument(
        "--pass",
        dest="passes",
        action="append",
        default=[],
        metavar="PIPELINE",
        help="passes to run: taylor, or 'taylor{variant=element2},lora{epochs=1}'; may be repeated; "
        "see `fxprune passes`",
    )
    parser.add_argument(
        "--plan",
        metavar="PLAN",
        help="the DIR that another run wrote, or its fxprune.plan: remove the same units, before any passes",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    """How the run goes, what it shows, and in which form it writes."""
    parser.add_argument(
        "--resume", action="store_true", help="continue an interrupted run of this command after its last finished pass"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the result without training or writing")
    _add_full(parser)
    parser.add_argument(
        "--form",
        choices=("auto", "uniform", "free"),
        default="auto",
        help="uniform: equal widths in all layers, described by a plain config, with the nearest counts that it can "
        "say; free: widths may differ per layer, described by a modelling file; auto (default): uniform if the "
        "widths allow it",
    )
    parser.add_argument(
        "--print-ir-after",
        action="append",
        default=[],
        metavar="PASS",
        help="print the graph on stderr after this pass; may be repeated; 'all' for every pass",
    )
    add_placement_options(parser)


def _add_output(
    parser: argparse.ArgumentParser,
    *,
    required: bool,
    written: str = "directory to write",
    replaced: str = "replace it if it exists",
) -> None:
    parser.add_argument("--out", required=required, metavar="DIR", help=written)
    parser.add_argument("--force", action="store_true", help=replaced)


def _add_export(commands: Any) -> None:
    parser = _command(commands, "export", "Write a model in another format. The result is compared with the original.")
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP + "; usually the DIR that apply wrote")
    parser.add_argument(
        "--format",
        default="onnx",
        metavar="FORMAT",
        help="onnx (default) or gguf, with its options if you like: 'onnx{dtype=int8,layout=transformers.js}'; "
        "see `fxprune formats`",
    )
    shared = parser.add_argument_group("options of the format, if it has them; --pad is of gguf, the rest of onnx")
    shared.add_argument(
        "--dtype",
        metavar="TYPE",
        help="of the weights: float32 (default), float16, or weight-only int8 or int4; for gguf float32, float16, "
        "bfloat16 or q8_0",
    )
    shared.add_argument(
        "--layout",
        metavar="NAME",
        help="names and places of the files: onnxruntime (default), which onnxruntime-genai runs too, or "
        "transformers.js",
    )
    shared.add_argument(
        "--optimize",
        metavar="DEVICE",
        help="fuse for ONNX Runtime on cpu (default) or cuda, or none: only standard operators",
    )
    shared.add_argument(
        "--no-cache",
        dest="cache",
        action="store_const",
        const=False,
        help="export a causal language model without a key-value cache: it reads whole sequences and returns logits",
    )
    shared.add_argument(
        "--pad",
        action="store_const",
        const=True,
        help="write zeros in the place of what was removed, where llama.cpp takes no other widths",
    )
    add_example_option(parser, modules=False)
    add_placement_options(parser, dtype=False)  # --dtype is that of the weights in the file
    _add_output(
        parser,
        required=True,
        written="directory to write; with --format gguf the file",
        replaced="replace an earlier export of the same format",
    )
    _add_code_option(parser)


def _add_eval(commands: Any) -> None:
    about = (
        "Compare models: perplexity, tasks and generated text, each with its standard error and paired differences, "
        "parameters, bytes, MACs, tokens per second."
    )
    parser = _command(commands, "eval", about, json_file=True)
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help=MODEL_HELP + "; or an ONNX directory written by export"
    )
    add_evaluation_options(parser)
    add_placement_options(parser)
    _add_code_option(parser)
    _add_pickle_option(parser)


def _add_bench(commands: Any) -> None:
    parser = _command(commands, "bench", "Compare the speed of models: time to first token, tokens per second, memory.")
    parser.add_argument("models", nargs="+", metavar="MODEL", help=MODEL_HELP + "; or an ONNX directory")
    parser.add_argument(
        "--baseline", metavar="MODEL", help="the one that the others are compared with (default: the largest)"
    )
    parser.add_argument("--onnx", action="store_true", help="also export each model to ONNX, and time it there")
    parser.add_argument("--prompt", type=int, default=128, metavar="N", help="tokens in the prompt (default: 128)")
    parser.add_argument("--new", type=int, default=32, metavar="N", help="tokens to generate (default: 32)")
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="timed rounds, after a warm-up round (default: 5)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads within one operator (default: as torch)")
    add_draft_options(parser)
    add_placement_options(parser)
    _add_code_option(parser)
    _add_pickle_option(parser)


def _add_report(commands: Any) -> None:
    about = "Write one page about results: sizes, kept units, scores, costs, training, quality, checks, the recipe."
    add_report_options(_command(commands, "report", about))


def _add_passes(commands: Any) -> None:
    parser = _command(commands, "passes", "List every pass with its options, their types and defaults.")
    parser.add_argument("names", nargs="*", metavar="PASS", help="show these alone (default: all)")


def _add_formats(commands: Any) -> None:
    _command(commands, "formats", "List every format of export with its options, their types and defaults.")


def _add_recipe_command(commands: Any) -> None:
    parser = _command(
        commands,
        "recipe",
        "Print the recipe that made a directory, or list the recipes that come with fxprune. A recipe is a YAML file "
        "of options for apply.",
    )
    parser.add_argument(
        "what", nargs="?", metavar="DIR|NAME", help="a directory that apply wrote, or one of the recipes listed"
    )


def _add_push(commands: Any) -> None:
    parser = _command(
        commands,
        "push",
        "Upload a directory that apply wrote to the Hugging Face Hub, with its model card. Files that fxprune.json "
        "does not list stay here.",
    )
    parser.add_argument("artifact", metavar="DIR", help="the directory that apply wrote")
    parser.add_argument("repository", metavar="ORG/NAME", help="the model repository; made if it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--results", metavar="FILE", help="the output of `fxprune eval DIR ... --json`, for the model card"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, and upload nothing")


def _add_doctor(commands: Any) -> None:
    _command(
        commands,
        "doctor",
        "Show the devices and the memory of this machine, the versions of libraries, and what fxprune uses of it all.",
    )


def _add_demo(commands: Any) -> None:
    parser = _command(
        commands,
        "demo",
        "Run a complete example on the built-in model: prune a quarter, recover, export to ONNX, measure.",
    )
    _add_output(parser, required=True)


def _add_help(commands: Any) -> None:
    parser = commands.add_parser("help", help="Explain a command", description="Explain a command, or name them all.")
    parser.add_argument("topic", nargs="?", metavar="COMMAND", help="the command")
    parser.set_defaults(debug=False)


def _add_completion(commands: Any) -> None:
    about = "Print a script that completes commands, flags and passes in a shell. "
    example = 'For bash: eval "$(fxprune completion bash)" in ~/.bashrc; likewise for zsh. For fish: '
    where = "fxprune completion fish > ~/.config/fish/completions/fxprune.fish"
    parser = commands.add_parser("completion", help=about.partition(". ")[0], description=about + example + where)
    parser.add_argument("shell", choices=SHELLS, help="the shell")
    parser.set_defaults(debug=False)
