"""The commands of a working day, by the lines of docs/working-day.md."""

from __future__ import annotations

from dataclasses import dataclass

TITLES = {
    1: ("Tables name exactly what they show", "Layers that lost as much share a row; `--full` gives each its own."),
    2: (
        "What fxprune wrote it reads back",
        "Widths that differ by layer are in `config.json`: no code from the directory runs.",
    ),
    3: ("Layers that went are named, with their scores", ""),
    4: ("The larger model is the baseline", "`--baseline MODEL` names another; MACs are of the prompt that is timed."),
    5: ("What has no effect is an error or a note", ""),
    6: ("Two lines of Python load the result", "The free form needs `trust_remote_code=True`, and is told so."),
    7: (
        "An interrupted run goes on, to the same bytes",
        "The first is ended by SIGTERM once a pass is done; the last line compares with a run that nothing ended.",
    ),
    8: (
        "Progress",
        "On a terminal a bar, elsewhere a line every 30 seconds; `-v` tells every step, `--log-file` keeps them.",
    ),
    9: ("Commands without a model answer at once", "CPU seconds of whole programs, measured here."),
    10: ("Recipes", "What a command says can stand in a file; `fxprune recipe OUT` prints the one that made OUT."),
    11: ("How much, and where", "Each cut measured alone, then whole budgets; and the next command."),
    12: ("One page about results", "[Analyze and report](analyze-and-report.md) says what is on it."),
    13: ("A model card, and the Hub", "Without `--dry-run` it uploads."),
    14: ("Data as people have it", "Tables, lists in JSON, compressed files, conversations; empty rows are counted."),
    15: ("Models compared", "With standard errors, and differences on the same windows."),
    16: ("The shell", "Help, the nearest word, completion, 80 columns."),
    17: ("Extras", "What is not installed names the command that brings it; `make dist` tries the wheel without any."),
    18: ("Pages", "Every command of every page parses in a test, and links lead somewhere."),
}
"""Number of a line -> its title, and what is said of it."""

SMALL = "taylor{samples=2,length=32}"


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command.

    Attributes:
        line: of the page.
        number: in its line.
        command: as a user types it; what is shown in its place where something is measured.
        code: the exit code.
        lines: the most lines of its output on the page.
        errors: whether what it tells on stderr is shown.
        own_process: whether it is a program of its own, of which CPU seconds are told.
        prepare: the function of ``measures`` that runs before.
        measure: the one that runs in its place, and returns what is shown.
    """

    line: int
    number: int
    command: str
    code: int = 0
    lines: int = 14
    errors: bool = False
    own_process: bool = False
    prepare: str = ""
    measure: str = ""

    @property
    def name(self) -> str:
        return f"{self.line}.{self.number}"


def _steps(line: int, *steps: dict[str, object]) -> list[Step]:
    return [Step(line=line, number=number, **given) for number, given in enumerate(steps, start=1)]  # type: ignore[arg-type]


_WRONG = {"code": 2, "errors": True}
_QUICK = {"own_process": True, "errors": True}

STEPS = [
    *_steps(16,
        {"command": "fxprune apply demo --ratoi 0.2", **_QUICK, "code": 2},
        {"command": "fxprune passes compensate", **_QUICK, "lines": 12},
        {"command": "fxprune completion bash", **_QUICK, "lines": 6},
        {"command": "fxprune help export", **_QUICK, "lines": 12},
    ),
    *_steps(9,
        {"command": "fxprune --help", **_QUICK, "lines": 4},
        {"command": "fxprune passes", **_QUICK, "lines": 6},
        {"command": "fxprune apply demo --pass tayler --out OUT", **_QUICK, "code": 2},
        {"command": "fxprune trace demo", **_QUICK, "lines": 4},
        {"command": "the same export by torch and transformers alone:", "measure": "export_alone"},
    ),
    *_steps(5,
        {"command": f"fxprune apply demo --pass '{SMALL}' --ratio 0.2 --target params=0.8 --out X", **_WRONG},
        {"command": "fxprune apply demo --pass magnitude --ratio 0.2 --layers 4:30 --dry-run"},
        {"command": "fxprune apply demo --pass magnitude --ratio 0.2 --multiple-of 100000 --out X", **_WRONG},
        {"command": "fxprune apply demo --pass magnitude --ratio nan --out X", **_WRONG},
    ),
    *_steps(1,
        {"command": "fxprune trace demo", "lines": 12},
        {"command": "fxprune apply demo --pass 'magnitude{by=global}' --ratio 0.3 --out FREE", "lines": 30},
    ),
    *_steps(2,
        {"command": "fxprune trace FREE", "lines": 12},
        {"command": "fxprune apply FREE --pass magnitude --ratio 0.2 --full --dry-run", "lines": 14},
    ),
    *_steps(3, {"command": "fxprune apply demo --pass 'drop{layers=1,sub_blocks=1}' --out DROPPED", "lines": 14}),
    *_steps(4, {"command": "fxprune bench FREE demo --rounds 2 --prompt 32 --new 8", "lines": 20}),
    *_steps(6, {"command": "cat FREE/README.md", "measure": "card"}),
    *_steps(10,
        {"command": "fxprune recipe FREE", "lines": 24},
        {"command": "fxprune apply --recipe r.yaml --out AGAIN", "prepare": "write_recipe", "lines": 6},
        {"command": "every file of FREE and AGAIN compared:", "measure": "same_files"},
        {"command": "fxprune apply --recipe wrong.yaml --out X", "prepare": "write_wrong_recipe", **_WRONG},
    ),
    *_steps(14,
        {"command": "fxprune eval demo --text rows.csv --window 16 --no-speed", "prepare": "write_rows", **_WRONG},
        {"command": "fxprune eval demo --text rows.csv --field body --window 16 --windows 4 --no-speed"},
        {"command": "fxprune eval demo --text rows.json --text rows.jsonl.gz --window 16 --windows 4 --no-speed"},
        {"command": "fxprune apply demo --pass 'lora{steps=2,batch=2,length=64}' --data pairs.jsonl --out PAIRS"},
    ),
    *_steps(15,
        {"command": "fxprune eval FREE demo --text rows.jsonl.gz --window 32 --no-speed --generate 'The function "
                    "returns' --new 8 --json eval.json", "lines": 24},
    ),
    *_steps(11,
        {"command": f"fxprune analyze demo --pass '{SMALL}' --scores s.safetensors --json analysis.json", "lines": 40},
    ),
    *_steps(12, {"command": "fxprune report FREE AGAIN --eval eval.json --html report.html"}),
    *_steps(13, {"command": "fxprune push FREE me/smaller --dry-run"}),
    *_steps(8,
        {"command": f"fxprune apply demo --pass '{SMALL},lora{{steps=4,batch=2,length=64}}' --ratio 0.2 --out V -v",
         "errors": True, "lines": 40},
        {"command": "fxprune export V --out ONNX -v", "errors": True, "lines": 30},
        {"command": "CPU seconds of one pass over 160 windows, its progress shown or not:", "measure": "progress_cost"},
    ),
    *_steps(7,
        {"command": "fxprune apply demo --pass 'generate{windows=4,length=16,first=0},wanda{samples=4,length=16}' "
                    "--ratio 0.2 --out R --resume", "measure": "interrupted"},
        {"command": "fxprune apply demo --pass 'generate{windows=4,length=16,first=0},wanda{samples=4,length=16}' "
                    "--ratio 0.2 --out R --resume", "lines": 20},
        {"command": "every file compared with those of a run that nothing ended:", "measure": "same_after_resume"},
    ),
    *_steps(17, {"command": "fxprune export V --out ONNX2", "measure": "without_extra"}),
    *_steps(18, {"command": "the pages, and links in them:", "measure": "pages"}),
]  # fmt: skip
"""In the order in which they run: what is quick first."""
