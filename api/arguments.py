"""What may be typed: the commands and their options, and what is said about them.

Nothing heavy is imported here, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, NoReturn

from ..ir.errors import RequestError
from . import screen

BAD_REQUEST = RequestError.exit_code

Run = Callable[[argparse.Namespace], int]

MODEL_HELP = "a Hugging Face model directory, a Hub id, or demo for the built-in model"
ANY_MODEL_HELP = MODEL_HELP + "; or package.module:callable, which returns any torch.nn.Module"


class _Parser(argparse.ArgumentParser):
    """argparse with this program's way of saying what is wrong."""

    def error(self, message: str) -> NoReturn:
        screen.complain(message, f"see `{self.prog} --help`")
        raise SystemExit(BAD_REQUEST)


def build_parser(commands: Mapping[str, Run]) -> argparse.ArgumentParser:
    """The whole command line.

    Args:
        commands: the name of every command -> what runs it and returns the exit code.
    """
    parser = _Parser(
        prog="fxprune",
        description="A compiler for structurally smaller models: trace, couple, score, prune, export.",
        epilog="`fxprune COMMAND --help` explains a command. Exit codes: 0 done, 1 failed, 2 bad request.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('fxprune')}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (_add_trace, _add_apply, _add_export, _add_eval, _add_bench, _add_passes, _add_formats, _add_demo):
        add(subparsers)
    for name, run in commands.items():
        subparsers.choices[name].set_defaults(run=run)
    return parser


def _command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text.partition(". ")[0].rstrip("."), description=text
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout, and nothing else there")
    parser.add_argument("--debug", action="store_true", help="on failure, print the traceback")
    return parser


def _add_code_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own code, if it brings any")


def _add_pickle_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read weights from a pickle when there is nothing better"
    )


def _add_example_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--example",
        metavar="INPUTS",
        help="what a package.module:callable is called with: 'float32[2,3,224,224]', or by name "
        "'ids=int64[2,16],mask=bool[2,16]'; the first extents are samples. For a model that is no causal language "
        "model it is made from its config when left out",
    )


def _add_loss_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--loss", metavar="NAME", help="package.module:function, takes the module and returns a scalar to score with"
    )


def _add_trace(commands: Any) -> None:
    parser = _command(
        commands,
        "trace",
        "Show the operators, axes and coupled channel groups of a model. No weights are read.",
    )
    parser.add_argument("model", metavar="MODEL", help=ANY_MODEL_HELP)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--ir", action="store_true", help="print the graph and its groups as text")
    what.add_argument(
        "--why", nargs=2, metavar=("A", "B"), help="why two weights shrink together, operator by operator"
    )
    parser.add_argument("--dot", metavar="FILE", help="write the coupling graph for Graphviz")
    _add_example_option(parser)
    _add_code_option(parser)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    shared = parser.add_argument_group("options of every pass that has them")
    shared.add_argument("--ratio", metavar="R", help="share of the units of each group to remove, in [0, 1)")
    shared.add_argument("--target", metavar="T", help="what may be left of the model: params=0.8, bytes=..., macs=...")
    shared.add_argument("--layers", metavar="START:END", help="prune these layers only, END exclusive")
    shared.add_argument("--multiple-of", metavar="N", help="keep a multiple of N units of each group")
    shared.add_argument("--seed", metavar="N", help="of every random choice")
    shared.add_argument(
        "--channels",
        choices=("true", "false"),
        help="prune the residual width; left out: false for Hugging Face models, true for package.module:callable",
    )


def _add_apply(commands: Any) -> None:
    parser = _command(
        commands,
        "apply",
        "Make a model smaller. Runs the passes of a pipeline and writes a Hugging Face model directory that plain "
        "transformers loads; of any other module, safetensors and an exported program.",
    )
    parser.add_argument("model", metavar="MODEL", help=ANY_MODEL_HELP)
    parser.add_argument(
        "--pass",
        dest="passes",
        action="append",
        default=[],
        metavar="PIPELINE",
        help="passes to run: taylor, or 'taylor{variant=element2},lora{epochs=1}'; repeats; see `fxprune passes`",
    )
    parser.add_argument(
        "--plan",
        metavar="FILE",
        help="remove what another run removed: the plan.safetensors it wrote; before the passes, if there are any",
    )
    _add_shared(parser)
    text = parser.add_argument_group("text: a file, a .jsonl or .json file of rows, or a `datasets` id")
    text.add_argument("--calib", metavar="TEXT", help="what scores are computed on")
    text.add_argument("--data", metavar="TEXT", help="what recovery passes train on")
    text.add_argument("--scores", metavar="FILE", help="keep the scores of this run, or use those that are kept there")
    module = parser.add_argument_group("for package.module:callable, and models that are no causal language models")
    _add_example_option(module)
    _add_loss_option(module)
    _add_output(parser, required=False)
    parser.add_argument(
        "--resume", action="store_true", help="go on after the last pass that this command had done when it broke off"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would come out; write and train nothing")
    parser.add_argument(
        "--form",
        choices=("auto", "uniform", "free"),
        default="auto",
        help="uniform: equal widths in all layers and a plain config; free: widths per layer and a modelling file; "
        "auto (default): uniform where it fits",
    )
    parser.add_argument(
        "--print-ir-after",
        action="append",
        default=[],
        metavar="PASS",
        help="print the graph on stderr after this pass; repeats; 'all' for every one",
    )
    _add_code_option(parser)
    _add_pickle_option(parser)


def _add_output(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--out", required=required, metavar="DIR", help="directory to write, complete or not at all")
    parser.add_argument("--force", action="store_true", help="replace the directory if it exists")


def _add_export(commands: Any) -> None:
    parser = _command(commands, "export", "Lower a model to another format, checked against the original.")
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP + "; usually the OUT of apply")
    parser.add_argument(
        "--format",
        default="onnx",
        metavar="FORMAT",
        help="what to write, with its options if you like: 'onnx{dtype=int8,layout=transformers.js}' (default: onnx); "
        "see `fxprune formats`",
    )
    shared = parser.add_argument_group("options of the format, if it has them; the values are those of onnx")
    shared.add_argument(
        "--dtype",
        metavar="TYPE",
        help="of the weights: float32 (default), float16, or weight-only int8 or int4",
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
        help="of a causal language model: whole sequences in, logits out, and no keys and values of earlier tokens",
    )
    _add_example_option(parser)
    _add_output(parser, required=True)
    _add_code_option(parser)


def _add_eval(commands: Any) -> None:
    parser = _command(
        commands,
        "eval",
        "Measure models side by side: perplexity, parameters, bytes, MACs, tokens per second.",
    )
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help=MODEL_HELP + "; or an ONNX directory written by export"
    )
    parser.add_argument("--text", metavar="FILE", help="held-out text (needed unless one of the models is demo)")
    parser.add_argument("--window", type=int, default=128, metavar="N", help="tokens in a window (default: 128)")
    parser.add_argument("--windows", type=int, metavar="N", help="read the first N windows (default: all)")
    parser.add_argument(
        "--allow-overlap", action="store_true", help="measure on text that a model was calibrated or trained on, too"
    )
    _add_code_option(parser)
    _add_pickle_option(parser)


def _add_bench(commands: Any) -> None:
    parser = _command(commands, "bench", "Time models side by side: first token, tokens per second, memory.")
    parser.add_argument("models", nargs="+", metavar="MODEL", help=MODEL_HELP + ", or ONNX; compared with the first")
    parser.add_argument("--onnx", action="store_true", help="export each model too, and time it in ONNX Runtime")
    parser.add_argument("--prompt", type=int, default=128, metavar="N", help="tokens to read (default: 128)")
    parser.add_argument("--new", type=int, default=32, metavar="N", help="tokens to write (default: 32)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="after one that warms up (default: 5)")
    parser.add_argument("--threads", type=int, metavar="N", help="of one operator (default: torch's choice)")
    _add_code_option(parser)


def _add_passes(commands: Any) -> None:
    _command(commands, "passes", "List every pass with its options, their types and defaults.")


def _add_formats(commands: Any) -> None:
    _command(commands, "formats", "List every format of export with its options, their types and defaults.")


def _add_demo(commands: Any) -> None:
    parser = _command(
        commands,
        "demo",
        "Run the whole main job on the built-in model: prune by a quarter, recover, export, measure.",
    )
    _add_output(parser, required=True)
