"""The scaling law L(N, D) = E + A / N^α + B / D^β, fitted with its uncertainty.

The form and the estimator are approach 3 of Hoffmann et al. 2022 (arXiv:2203.15556): Huber loss on
residuals of log L, minimised by L-BFGS from the best points of a grid, the best end kept. Besiroglu
et al. 2024 (arXiv:2404.10102) name what went wrong there, and this module does differently: the objective
is a sum, in units of the Huber threshold, so that L-BFGS does not take a small value for
convergence; intervals come from a bootstrap; constants keep all their digits."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from llm.errors import UserError

# Residuals of log L beyond a tenth of a percent count linearly (Hoffmann et al., appendix D.3)
HUBER = 1e-3
EXPONENTS = (0.01, 3.0)  # bounds of α and β; wide around everything published (0.3 to 0.8)
SHARES = (0.05, 0.15, 0.3, 0.45)  # of the mean loss, that the terms of N and of D may start with
STARTS = (0.1, 0.3, 0.6, 1.0)  # exponents to start with
TRIED = 30  # starts of the grid with the lowest objective
FEW = 6  # least runs, for five constants
NAMES = ("E", "A", "B", "alpha", "beta")

Array = np.ndarray


@dataclass(frozen=True)
class Law:
    """The five constants; losses in nats per token."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float | Array, tokens: float | Array) -> float | Array:
        """L(N, D)."""
        return (
            self.E
            + self.A / np.power(parameters, self.alpha)
            + self.B / np.power(tokens, self.beta)
        )

    @property
    def exponent(self) -> float:
        """a of N_opt ∝ C^a: how much of more compute goes into size (0.5: as much as into tokens)."""
        return self.beta / (self.alpha + self.beta)

    def optimal(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of the least loss for C = 6 N D (Hoffmann et al., eq. 4)."""
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        # A law fitted to a resample of few runs may put no weight on size: then g underflows.
        parameters = max(g * (flops / 6) ** self.exponent, sys.float_info.min)
        return parameters, flops / 6 / parameters


def fit(parameters: Array, tokens: Array, losses: Array) -> Law:
    """Fit the law to (runs,) sizes, training tokens and final losses (nats).

    Raises:
        UserError: too few runs, or all of one size or one number of tokens: the constants would be
            arbitrary.
    """
    _check(parameters, tokens, losses)
    return _best(parameters, tokens, losses, _grid(losses))[0]


def bootstrap(
    parameters: Array, tokens: Array, losses: Array, resamples: int, seed: int
) -> list[Law]:
    """Fit laws to resamples of the runs; draws that do not determine a law are repeated.

    Of `FEW` runs one may be missing in a draw, or all draws would be the same.
    """
    _check(parameters, tokens, losses)
    _, starts = _best(parameters, tokens, losses, _grid(losses))
    draw = np.random.default_rng(seed)
    enough = min(FEW, len(losses) - 1)
    laws: list[Law] = []
    while len(laws) < resamples:
        chosen = draw.integers(0, len(losses), len(losses))
        n, d = parameters[chosen], tokens[chosen]
        if len(set(n)) > 1 and len(set(d)) > 1 and len(set(chosen)) >= enough:
            laws.append(_best(n, d, losses[chosen], starts, around=(parameters, tokens))[0])
    return laws


def interval(values: list[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return percentiles that enclose a share of the values."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _check(parameters: Array, tokens: Array, losses: Array) -> None:
    if len(losses) < FEW or len(set(parameters)) < 2 or len(set(tokens)) < 2:
        raise UserError(
            f"scaling: {len(losses)} runs of {len(set(parameters))} sizes and {len(set(tokens))} numbers of tokens do "
            f"not determine a law of five constants: at least {FEW} runs, two sizes and two numbers of tokens are "
            "needed (scaling.depths, scaling.tokens), and twice as many are better."
        )


def _grid(losses: Array) -> list[Array]:
    """Starts: (log of the N term and of the D term at the mean run, log E, α, β)."""
    mean = float(np.mean(losses))
    return [
        np.array([np.log(x * mean), np.log(y * mean), np.log((1 - x - y) * mean), alpha, beta])
        for x, y, alpha, beta in product(SHARES, SHARES, STARTS, STARTS)
    ]


def _best(
    parameters: Array,
    tokens: Array,
    losses: Array,
    starts: list[Array],
    around: tuple[Array, Array] | None = None,
) -> tuple[Law, list[Array]]:
    """The law of the lowest objective, and the two best points found, from which a similar fit may
    start.

    Sizes and tokens are taken relative to their geometric means, which makes the constants nearly
    independent.

    Args:
        around: sizes and tokens whose means are taken instead.
    """
    log_n, log_d, log_l = np.log(parameters), np.log(tokens), np.log(losses)
    middle_n, middle_d = (float(np.log(values).mean()) for values in around or (parameters, tokens))
    x, y = log_n - middle_n, log_d - middle_d
    bounds = [(None, None)] * 3 + [EXPONENTS] * 2

    def objective(point: Array) -> tuple[float, Array]:
        a, b, e, alpha, beta = point
        terms = np.stack([a - alpha * x, b - beta * y, np.full_like(x, e)])
        total = logsumexp(terms, axis=0)
        weights = np.exp(terms - total)
        residual = (log_l - total) / HUBER
        small = np.abs(residual) <= 1
        value = np.where(small, 0.5 * residual**2, np.abs(residual) - 0.5).sum()
        slope = -np.clip(residual, -1, 1) / HUBER
        gradient = np.array(
            [*(weights @ slope), -(weights[0] * x) @ slope, -(weights[1] * y) @ slope]
        )
        return float(value), gradient

    options = {"maxiter": 1000, "ftol": 1e-10, "gtol": 1e-6}
    starts = sorted(starts, key=lambda start: objective(start)[0])[:TRIED]
    found = [
        minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        for start in starts
    ]
    found.sort(key=lambda result: float(result.fun))
    a, b, e, alpha, beta = map(float, found[0].x)
    law = Law(
        E=float(np.exp(e)),
        A=float(np.exp(a + alpha * middle_n)),
        B=float(np.exp(b + beta * middle_d)),
        alpha=alpha,
        beta=beta,
    )
    return law, [result.x for result in found[:2]]
