"""Refits and removals equal slow ones that compute everything anew; what products in float32 cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from fxprune.passes.calibrate import gram
from fxprune.passes.calibrate.gram import COLUMNS, ROWS, add_gram, add_products, full_products, symmetric
from fxprune.passes.calibrate.least_squares import Moments, ObsSolver, refit
from fxprune.passes.calibrate.shrinkage import ALIKE, ridge_of

CPU = torch.device("cpu")


def ill_conditioned(tokens: int, inputs: int, seed: int = 0) -> torch.Tensor:
    """Inputs ``[tokens, inputs]`` float32: a mixture of directions from 1 down to 1e-4 in size."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(0, -4, inputs)[:, None]
    mixed = torch.randn(inputs, inputs, generator=generator) * sizes / inputs**0.5
    return torch.randn(tokens, inputs, generator=generator) @ mixed


def gathered(x: torch.Tensor, errors: torch.Tensor | None = None) -> Moments:
    found = Moments.empty(x.shape[1])
    for at in range(0, len(x), 7 if len(x) < 100 else 640):
        rows = slice(at, at + (7 if len(x) < 100 else 640))
        found.add(x[rows], None if errors is None else errors[rows])
    return found


def listed(columns: list[list[int]]) -> torch.Tensor:
    most = max(map(len, columns))
    return torch.tensor([unit + [-1] * (most - len(unit)) for unit in columns])


@dataclass
class Slow:
    """What is to be minimised, from whole arrays: ``1/2 tr((X W^T - Y) M (X W^T - Y)^T) + ridge``, solved anew for
    every set of inputs."""

    x: torch.Tensor
    y: torch.Tensor
    before: torch.Tensor
    metric: torch.Tensor
    damping: float

    def __post_init__(self) -> None:
        gram_matrix = self.x.T @ self.x
        self.ridge = self.damping * float(gram_matrix.diagonal().mean())
        self.system = gram_matrix + self.ridge * torch.eye(len(gram_matrix), dtype=torch.float64)
        self.right = self.x.T @ self.y + self.ridge * self.before.T

    def weights(self, gone: list[int]) -> torch.Tensor:
        kept = [column for column in range(len(self.system)) if column not in gone]
        found = torch.zeros_like(self.before)
        found[:, kept] = torch.linalg.solve(self.system[kept][:, kept], self.right[kept]).T
        return found

    def least(self, gone: list[int]) -> float:
        """The least value without some inputs, less a constant; what the ridge takes for them is no error."""
        kept = [column for column in range(len(self.system)) if column not in gone]
        inner = self.right[kept].T @ torch.linalg.solve(self.system[kept][:, kept], self.right[kept])
        removed = self.before[:, gone]
        return -0.5 * float((self.metric * inner).sum()) - 0.5 * self.ridge * float(
            (removed * (self.metric @ removed)).sum()
        )


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("columns", ["single", "wide", "mixed"])
def test_rounds_of_removals_equal_those_that_compute_everything_anew(moved: bool, weighed: bool, columns: str) -> None:
    """Inputs that belong to no unit, units without inputs and of several sizes, in an order of their own."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(60, 14, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(14, 14, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 14, generator=generator, dtype=torch.float64)
    error = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    root = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    metric = root.T @ root if weighed else torch.eye(5, dtype=torch.float64)
    units = {
        "single": [[column] for column in (3, 0, 7, 12, 1, 13, 5, 9)],
        "wide": [[0, 5, 9], [13, 1, 2], [3, 12, 4], [8, 7, 11]],
        "mixed": [[4], [9, 0], [], [13, 2, 6], [12], [1, 11]],
    }[columns]
    slow = Slow(x, x @ weight.T + (error if moved else 0), weight, metric, 0.02)
    given = weight.clone()
    moments = gathered(x, error if moved else None)
    solver = ObsSolver.of(moments, weight, 0.02, listed(units), metric if weighed else None)
    out: list[int] = []
    gone: list[int] = []
    for going in ([1], [3, 0], [2]):
        costs = solver.costs()
        for unit, inputs in enumerate(units):
            expected = 0.0 if unit in out else slow.least([*gone, *inputs]) - slow.least(gone)
            assert float(costs[unit]) == pytest.approx(expected, rel=1e-9, abs=1e-9), unit
        torch.testing.assert_close(solver.refitted(), slow.weights(gone), rtol=0, atol=1e-10)
        solver.remove(going)
        out += going
        gone += [column for unit in going for column in units[unit]]
    torch.testing.assert_close(solver.refitted(), slow.weights(gone), rtol=0, atol=1e-10)
    assert not solver.refitted()[:, gone].any()
    assert torch.equal(weight, given)


def error_left(x: Any, w: Any, gone: list[int]) -> float:
    """Half the squared error of the best map without some inputs, by numpy's own least squares."""
    kept = [column for column in range(x.shape[1]) if column not in gone]
    y = x @ w.T
    best = x[:, kept] @ np.linalg.lstsq(x[:, kept], y, rcond=None)[0]
    return 0.5 * float(((best - y) ** 2).sum())


@pytest.mark.parametrize("gone", [[[2]], [[0, 3]], [[1], [4]], [[5, 1], [0], [2, 3]]])
def test_taking_inputs_out_costs_what_least_squares_says_and_leaves_its_weights(gone: list[list[int]]) -> None:
    generator = np.random.default_rng(0)
    x, w = generator.normal(size=(40, 7)) @ generator.normal(size=(7, 7)), generator.normal(size=(3, 7))
    columns = torch.tensor([[unit] for unit in range(6)] + [[-1]])
    solver = ObsSolver.of(gathered(torch.from_numpy(x)), torch.from_numpy(w), 0.0, columns)
    assert solver.costs()[:6].numpy() == pytest.approx([error_left(x, w, [unit]) for unit in range(6)], rel=1e-6)
    out: list[int] = []
    for units in gone:
        solver.remove(units)
        out += units
    for unit in set(range(6)) - set(out):
        expected = error_left(x, w, [*out, unit]) - error_left(x, w, out)
        assert float(solver.costs()[unit]) == pytest.approx(expected, rel=1e-6)
    assert solver.costs()[[*out, 6]].tolist() == [0.0] * (len(out) + 1)
    kept = [column for column in range(7) if column not in out]
    best = np.linalg.lstsq(x[:, kept], x @ w.T, rcond=None)[0].T
    np.testing.assert_allclose(solver.refitted()[:, kept].numpy(), best, rtol=1e-6)
    assert not solver.refitted()[:, out].any()


def test_an_output_that_the_loss_does_not_feel_costs_nothing() -> None:
    """A metric without full rank, even one of zeros, needs no root."""
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    columns, weight = torch.arange(6)[:, None], torch.eye(6)
    for felt in (0, 2):
        metric = torch.zeros(6, 6, dtype=torch.float64)
        metric[:felt, :felt] = 1
        costs = ObsSolver.of(gathered(x), weight, 0.01, columns, metric).costs()
        assert [bool(cost) for cost in costs] == [unit < felt for unit in range(6)]


@pytest.mark.parametrize("moved", [False, True])
def test_the_fit_without_removal_is_the_refit(moved: bool) -> None:
    x = torch.randn(30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    errors = torch.ones(30, 2, dtype=torch.float64) if moved else None
    fitted = refit(gathered(x, errors), w, 0.05)
    solver = ObsSolver.of(gathered(x, errors), w, 0.05, torch.tensor([[-1]]))
    assert torch.equal(solver.refitted(), fitted)
    assert torch.equal(fitted, w.double()) is not moved


def test_moments_are_used_up() -> None:
    moments = gathered(torch.randn(9, 4), torch.randn(9, 3))
    refit(moments, torch.zeros(3, 4), 0.1)
    assert moments.inputs.numel() == 0
    assert moments.errors is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [5, COLUMNS + 3])
def test_moments_are_sums_in_float64(inputs: int, dtype: torch.dtype) -> None:
    """By default on a CPU: not one rounding of float32, whatever the inputs are."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS + 50, inputs, generator=generator, dtype=torch.float64).to(dtype)
    errors = torch.randn(ROWS + 50, 3, generator=generator, dtype=torch.float64).to(dtype)
    moments = Moments.empty(inputs)
    for rows in (slice(0, ROWS + 20), slice(ROWS + 20, None)):
        moments.add(x[rows], errors[rows])
    assert moments.count == len(x)
    assert moments.errors is not None
    exact = x.double().T @ x.double()
    torch.testing.assert_close(symmetric(moments.inputs), exact, rtol=0, atol=1e-11)
    torch.testing.assert_close(moments.errors, errors.double().T @ x.double(), rtol=0, atol=1e-11)


def test_products_in_float32_round_once_however_many_tokens() -> None:
    """Relative to the sizes of the two columns, as float32 rounds a product; eight times the tokens are not worse."""
    found = {}
    for tokens in (ROWS, 8 * ROWS):
        x = ill_conditioned(tokens, 48)
        exact, total = x.double().T @ x.double(), torch.zeros(48, 48, dtype=torch.float64)
        add_gram(total, x, torch.float32)
        sizes = exact.diagonal().sqrt()
        found[tokens] = float(((symmetric(total) - exact).abs() / sizes / sizes[:, None]).max())
        other = torch.zeros(48, 48, dtype=torch.float64)
        add_products(other, x, x, torch.float32)
        assert float(((other - exact).abs() / sizes / sizes[:, None]).max()) <= 1e-6
    assert 1e-9 < found[8 * ROWS] <= found[ROWS] <= 1e-6


@pytest.mark.parametrize("damping", [1e-2, 1e-4, 1e-6])
def test_what_a_refit_from_products_in_float32_costs(damping: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float64 throughout, about 1e-9 times the condition: at most ten times that."""
    x = ill_conditioned(4 * ROWS, 48)
    weight = torch.randn(6, 48, generator=torch.Generator().manual_seed(1))
    errors = torch.randn(len(x), 6, generator=torch.Generator().manual_seed(2)) * x.std()
    slow = Slow(
        x.double(), x.double() @ weight.double().T + errors.double(), weight.double(),
        torch.eye(6, dtype=torch.float64), damping,
    )  # fmt: skip
    exact = slow.weights([])
    values = torch.linalg.eigvalsh(slow.system)
    condition = float(values[-1] / values[0])
    assert condition > 1 / damping
    within64 = float((refit(gathered(x, errors), weight, damping) - exact).abs().max() / exact.abs().max())
    monkeypatch.setattr(gram, "product_dtype", lambda _device: torch.float32)
    within32 = float((refit(gathered(x, errors), weight, damping) - exact).abs().max() / exact.abs().max())
    assert within64 <= 1e-15 * condition
    assert within64 < within32 <= 1e-8 * condition


@pytest.fixture
def coarse() -> Iterator[None]:
    """Products of float32 may be made of bfloat16 ones."""
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("coarse")
def test_products_are_full_whatever_the_caller_allows_and_the_caller_still_may() -> None:
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    exact, total = x.double().T @ x.double(), torch.zeros(64, 64, dtype=torch.float64)
    settings: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    assert "ieee" not in before
    with torch.autocast("cpu", dtype=torch.bfloat16):
        add_gram(total, x, torch.float32)
    assert float((symmetric(total) - exact).abs().max() / exact.abs().max()) <= 1e-6
    with full_products(CPU):
        assert [setting.fp32_precision for setting in settings] == ["ieee", "ieee"]
    with pytest.raises(RuntimeError, match="size"):
        add_gram(total[:3, :3], x)
    assert [setting.fp32_precision for setting in settings] == before
    assert torch.get_float32_matmul_precision() == "medium"


def _drawn(tokens: int, inputs: int, noise: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs of very different sizes, errors of which they explain a part, and the change that explains it."""
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(0, -2, inputs, dtype=torch.float64)
    x = torch.randn(tokens, inputs, generator=draw, dtype=torch.float64) * sizes
    change = torch.randn(5, inputs, generator=draw, dtype=torch.float64) / sizes / inputs**0.5
    return x, x @ change.T + noise * torch.randn(tokens, 5, generator=draw, dtype=torch.float64), change


@pytest.mark.parametrize(("tokens", "noise"), [(600, 0.5), (600, 3.0), (300, 3.0), (150, 3.0), (60, 1.0)])
def test_a_refit_that_holds_on_by_itself_errs_as_little_as_the_best_strength(tokens: int, noise: float) -> None:
    """On other tokens of the same kind, averaged over draws: near the best of all strengths, far from the worst."""
    strengths = ("auto", 0.0, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    errs = dict.fromkeys(strengths, 0.0)
    for seed in range(8):
        x, errors, change = _drawn(tokens, 100, noise, seed)
        scale = x.square().mean(0)
        for strength in strengths:
            if not strength and tokens < 2 * 100:
                errs[strength] = float("inf")
                continue
            found = refit(gathered(x, errors), torch.zeros(5, 100), strength)  # type: ignore[arg-type]
            errs[strength] += float(((found - change).square() * scale).sum())
    fixed = {strength: value for strength, value in errs.items() if strength != "auto"}
    assert errs["auto"] <= 1.1 * min(fixed.values())


def test_the_ridge_follows_the_inputs_and_what_they_explain() -> None:
    x, errors, change = _drawn(2000, 20, 1.0, 0)
    found = gathered(x, errors)
    assert found.errors is not None
    assert found.energy is not None
    assert torch.allclose(found.energy, errors.square().sum(0))
    ridge = ridge_of(found.inputs, found.errors, found.energy, found.count)
    strength = ridge / found.inputs.diagonal()
    share = float((x @ change.T).square().sum() / errors.square().sum())
    assert torch.allclose(strength, strength.new_tensor(ALIKE * 20 / 2000 * (1 - share) / share), rtol=0.1)
    nothing = gathered(x, torch.randn(2000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(9)))
    assert nothing.errors is not None
    assert nothing.energy is not None
    assert float((ridge_of(nothing.inputs, nothing.errors, nothing.energy, 2000) / nothing.inputs.diagonal()).min()) > 1


def test_inputs_that_are_always_zero_and_errors_that_are_none_change_nothing() -> None:
    x, errors, _ = _drawn(200, 6, 1.0, 0)
    x[:, 2] = 0
    weight = torch.randn(5, 6)
    assert torch.equal(refit(gathered(x, errors), weight, "auto")[:, 2], weight[:, 2].double())
    assert torch.equal(refit(gathered(x), weight, "auto"), weight.double())
    assert torch.allclose(refit(gathered(x, torch.zeros(200, 5)), weight, "auto"), weight.double())
