"""Models that bring their own code, pruned and written: plain transformers loads them in a process of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import fxprune
from fxprune.backends.artifact import read_plan
from fxprune.backends.digests import sha256
from fxprune.backends.huggingface import weight_source
from fxprune.backends.verify import Job, verify
from fxprune.runtime.tolerances import LOGITS_TOLERANCE, relative_difference

from .written import OWN, TEXT, OwnModel

EXACT = 1e-10
"""Of logits in float64, relative to their largest magnitude."""

READ = "samples=2,length=8"
ONLY_CUT = {
    "packed uniform": "magnitude{ratio=0.25,heads=off}",
    "packed free": "magnitude{ratio=0.25}",
    "interleaved uniform": f"taylor{{ratio=0.25,heads=off,{READ}}}",
    "interleaved free": f"wanda{{ratio=0.25,heads=query,{READ}}}",
    "planar uniform": "random{ratio=0.25,heads=off}",
    "planar free": f"wanda{{ratio=0.25,{READ}}}",
    "mixture uniform": f"taylor{{ratio=0.25,heads=off,variant=vector,{READ}}}",
    "mixture free": "magnitude{ratio=0.25,layers=1:2}",
    "reader uniform": "magnitude{ratio=0.25,heads=off}",
    "reader free": "magnitude{ratio=0.25}",
}
"""Passes after which the result computes what the original does with zeros where units went."""

OTHERS = {
    "packed free, sub-blocks": f"drop{{sub_blocks=1,{READ}}},wanda{{ratio=0.25,heads=off,{READ}}}",
    "interleaved uniform, residual width": "magnitude{ratio=0.25,heads=off,channels=true}",
    "planar free, repaired": f"obs{{ratio=0.25,{READ}}},compensate{{{READ}}}",
    "mixture uniform, a layer less": f"drop{{layers=1,{READ}}}",
    "mixture uniform, trained": "random{ratio=0.25,heads=off},lora{steps=2,batch=2,length=8}",
}


QUICK = ("packed free", "interleaved uniform", "planar free", "mixture uniform", "reader uniform")
"""One of each model. The others take some seconds each."""


def rows(*wanted: str) -> list[Any]:
    return [pytest.param(row, marks=() if row in QUICK else pytest.mark.slow) for row in wanted]


@dataclass(frozen=True)
class Artifact:
    """What was written of a model.

    Attributes:
        model: the model.
        source: its directory.
        out: the directory of the result.
        applied: what the run says.
        job: what a fresh process is to check.
    """

    model: OwnModel
    source: Path
    out: Path
    applied: fxprune.api.Applied
    job: Job | None = None

    def load(self, path: Path, **options: Any) -> Any:
        """A model as its user loads it."""
        auto = getattr(transformers, self.model.auto)
        return auto.from_pretrained(path, trust_remote_code=True, **options).eval()

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "config.json").read_text())
        return found


def apply(model: OwnModel, source: Path, out: Path, passes: str, **options: Any) -> Artifact:
    texts = {"calib": [TEXT]} if "samples" in passes else {}
    texts |= {"data": [TEXT]} if "steps" in passes else {}
    applied = fxprune.apply(source, passes, out=out, trust_remote_code=True, **texts, **options)
    return Artifact(model, source, out, applied)


class Artifacts:
    """What was written, by row; each is made when it is asked for."""

    def __init__(self, root: Path) -> None:
        self.root, self.made = root, dict[str, Artifact]()
        self.jobs: list[Job] = []

    def __getitem__(self, row: str) -> Artifact:
        if row not in self.made:
            name, form = row.partition(",")[0].split()
            source, out = self.root / name, self.root / re.sub(r"\W+", "_", row)
            if not source.exists():
                OWN[name].write(source)
            made = apply(OWN[name], source, out, {**ONLY_CUT, **OTHERS}[row], form=form)
            self.made[row] = replace(made, job=self.jobs.pop())
        return self.made[row]

    def postpone(self, job: Job, *_: object) -> dict[str, Any]:
        """A check that is made later, of all at once."""
        self.jobs.append(job)
        return {}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artifacts]:
    found = Artifacts(tmp_path_factory.mktemp("artifacts"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_source, "verify_written", found.postpone)
        yield found


def check_all(found: list[Artifact]) -> None:
    jobs = [replace(made.job, consent=made.job.consent.moved(made.out)) for made in found if made.job is not None]
    assert len(jobs) == len(found)
    for checks, made in zip(verify(jobs), found, strict=True):
        assert checks["loaded_by"] == f"transformers.{made.model.auto}"
        assert checks["logits_worst_difference"] <= LOGITS_TOLERANCE
        assert checks["cached_generate_equals_uncached"] is (True if made.model.causal else None)


@pytest.mark.wide
def test_another_process_loads_them(artifacts: Artifacts) -> None:
    check_all([artifacts[row] for row in QUICK])


@pytest.mark.slow
@pytest.mark.usefixtures("real_processes")
def test_a_process_that_starts_from_nothing_loads_all(artifacts: Artifacts) -> None:
    check_all([artifacts[row] for row in (*ONLY_CUT, *OTHERS)])


def masked(artifact: Artifact) -> Any:
    """The source in float64, with zeros where the plan removed units."""
    model = artifact.load(artifact.source, dtype=torch.float64)
    tensors = model.state_dict()
    for (name, dim), kept in read_plan(artifact.out).items():
        gone = torch.ones(tensors[name].shape[dim], dtype=torch.bool)
        gone[torch.from_numpy(kept)] = False
        tensors[name].index_fill_(dim, gone.nonzero().flatten(), 0)
    return model


@pytest.mark.first_rows(2)
@pytest.mark.parametrize("row", rows(*ONLY_CUT))
def test_it_computes_what_the_original_does_with_zeros(row: str, artifacts: Artifacts) -> None:
    made = artifacts[row]
    whole, small = masked(made), made.load(made.out, dtype=torch.float64)
    assert small.num_parameters() < whole.num_parameters()
    ids = torch.randint(26, (2, 13), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    with torch.no_grad():
        for given in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": mask}):
            assert relative_difference(small(**given).logits, whole(**given).logits) <= EXACT


@pytest.mark.parametrize("row", rows(*ONLY_CUT, *OTHERS))
def test_the_code_goes_along_and_is_listed(row: str, artifacts: Artifacts) -> None:
    made = artifacts[row]
    form = "free" if " free" in row else "uniform"
    code = {path.name for path in made.source.glob("*.py")}
    own = {"modeling_fxprune.py"} if form == "free" else set()
    saved, record = made.applied.saved, json.loads((made.out / "fxprune.json").read_text())
    assert saved is not None
    assert saved.form == record["form"] == form
    assert {path.name for path in made.out.glob("*.py")} == code | own
    assert record["code"] == {name: sha256(made.out / name) for name in sorted(code) + sorted(own)}
    assert all((made.out / name).read_bytes() == (made.source / name).read_bytes() for name in code)
    assert saved.copied.said()[0] == f"copied, since it may run: {', '.join(sorted(code))}"
    assert str(made.source.parent) not in (made.out / "config.json").read_text()


@pytest.mark.slow
def test_what_names_the_code(artifacts: Artifacts) -> None:
    """All heads of a uniform model load; of a free one only that which was pruned."""
    uniform, free = artifacts["interleaved uniform"], artifacts["interleaved free"]
    assert uniform.config["auto_map"] == uniform.model.auto_map
    assert free.config["auto_map"] == {
        "AutoConfig": "configuration_interleaved.InterleavedConfig",
        "AutoModelForCausalLM": "modeling_fxprune.InterleavedForCausalLM",
    }
    body = transformers.AutoModel.from_pretrained(uniform.out, trust_remote_code=True)
    assert type(body).__name__ == "InterleavedModel"
    assert artifacts["planar free"].config["auto_map"]["AutoModel"].startswith("modeling_fxprune.")
    assert artifacts["reader uniform"].config["architectures"] == ["ReaderForSequenceClassification"]


CHANGES = {
    "packed uniform": {"intermediate_size": (44, 33)},
    "interleaved uniform": {"ffn_hidden_size": (40, 30)},
    "interleaved uniform, residual width": {"ffn_hidden_size": (40, 30), "hidden_size": (32, 24)},
    "planar uniform": {"ffn_hidden_size": (36, 27)},
    "mixture uniform": {"intermediate_size": (44, 33), "moe_intermediate_size": (12, 9)},
    "mixture uniform, a layer less": {"num_hidden_layers": (2, 1)},
    "reader uniform": {"d_ff": (40, 30)},
}


@pytest.mark.parametrize("row", rows(*CHANGES))
def test_their_own_configuration_says_the_smaller_model(row: str, artifacts: Artifacts) -> None:
    made = artifacts[row]
    before = json.loads((made.source / "config.json").read_text())
    changed = {name: (before[name], value) for name, value in made.config.items() if before[name] != value}
    assert changed == CHANGES[row]


@pytest.mark.parametrize("row", rows(*ONLY_CUT, *OTHERS))
def test_load_runs_what_is_listed_and_allowed(row: str, artifacts: Artifacts) -> None:
    made = artifacts[row]
    with pytest.raises(fxprune.RequestError, match=r"needs its own code: modeling_\w+\.\w+") as caught:
        fxprune.load(made.out)
    assert "trust_remote_code=True" in (caught.value.hint or "")
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        found, expected = (each(ids).logits for each in (_loaded(made.out), made.load(made.out)))
    assert relative_difference(found, expected) <= LOGITS_TOLERANCE


def _loaded(path: Path) -> Any:
    return fxprune.load(path, trust_remote_code=True).eval()


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("row", rows("packed free", "packed free, sub-blocks", "reader uniform"))
def test_the_result_is_pruned_again(row: str, artifacts: Artifacts, tmp_path: Path) -> None:
    """The class of the free form is fxprune's: what is written next is for the class of the model again."""
    made = artifacts[row]
    # transformers would take the class of another test's model for one in a directory of the same name.
    again = apply(made.model, made.out, tmp_path / f"{made.out.name}_again", "magnitude{ratio=0.5,heads=off}")
    artifacts.jobs.pop()
    small, smaller = again.load(again.source), again.load(again.out)
    assert smaller.num_parameters() < small.num_parameters()
    code = {path.name for path in made.source.glob("*.py")}
    assert code <= {path.name for path in again.out.glob("*.py")} <= code | {"modeling_fxprune.py"}
    saved = tmp_path / f"{made.out.name}_saved"
    again.load(again.out).save_pretrained(saved)
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        once_more = again.load(saved)(ids).logits
        assert relative_difference(once_more, smaller(ids).logits) <= LOGITS_TOLERANCE
