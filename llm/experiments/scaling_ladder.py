"""Ladder of small runs by the depth dial, the scaling law they follow, and its predictions.

Every size is trained on every number of tokens. Each run has its own budget, batch, rate and decay
by the rules of `llm.params.depth`, because a law needs finished runs, not points of longer ones
(Hoffmann et al. 2022, section 3.1). One more run, larger than all others, is held back: the law
predicts its loss before the loss is used.

The result of a finished run is a file in `.state/scaling-results/`, so a killed ladder resumes with
the run that was interrupted.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm import params
from llm.evaluate import scaling_law
from llm.evaluate.scaling_law import Law
from llm.model.config import Config
from llm.parallel import processes
from llm.params import Params
from llm.params.depth import AUTO, SHAPE, TRAINING, fine_batch_tokens, resolve
from llm.runtime.io import read_json, write_json
from llm.runtime.state_dirs import state_root
from llm.train.training_log import Tracker

TOKENS = Path("data/tokens")
OUT = Path("metrics/scaling.json")
# Budgets to find the best size for, as multiples of the held-back run's FLOPs.
LARGER = (1, 10, 100, 1000)
DETERMINED = 0.01  # E is undetermined if its interval is below this share of the lowest loss
DEPTHS = range(1, 129)  # depths to choose from for a budget


@dataclass(frozen=True)
class Rung:
    """One run; its FLOPs are those of training, as `llm.model.config` counts them."""

    depth: int
    tokens: int
    parameters: int
    flops: float
    params: Params
    held_back: bool

    @property
    def name(self) -> str:
        return f"depth{self.depth}-{self.tokens}"

    def size(self) -> dict[str, float]:
        """Return the entries of metrics/scaling.json that describe the run."""
        keys = ("depth", "parameters", "tokens", "flops")
        return {key: getattr(self, key) for key in keys}


class Prefixed:
    """Logs a rung's curves under the rung's name."""

    def __init__(self, tracker: Tracker, prefix: str) -> None:
        self.tracker, self.prefix = tracker, prefix

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics under the prefix."""
        self.tracker.log_metrics(
            {f"{self.prefix}.{key}": value for key, value in metrics.items()}, step=step
        )


def rungs(p: Params, vocabulary: int) -> list[Rung]:
    """Return the ladder of `p.scaling`, cheapest first; the held-back run is last."""
    s = p.scaling
    ladder = [
        _rung(p, vocabulary, depth, tokens, False) for depth in s.depths for tokens in s.tokens
    ]
    ladder.sort(key=lambda rung: rung.flops)
    return [*ladder, _rung(p, vocabulary, s.held_back_depth, max(s.tokens), True)]


def _rung(p: Params, vocabulary: int, depth: int, tokens: int, held_back: bool) -> Rung:
    data = p.model_dump(mode="json")
    data["model"] |= {"depth": depth, **dict.fromkeys(SHAPE, AUTO)}
    data["pretrain"] |= dict.fromkeys(TRAINING, AUTO)
    # No induction circuit, because small models have no room for it. No validation but the last.
    data["pretrain"] |= {
        "tokens": tokens,
        "init": params.SCRATCH,
        "induction_init": False,
        "eval_every": 2**31,
    }
    data["pretrain"]["batch_tokens"] = fine_batch_tokens(resolve(data))
    own = params.parse(data, f"scaling, depth {depth}")
    config = Config(vocab_size=vocabulary, **own.model.dimensions())
    trained = own.pretrain.steps * own.pretrain.batch_tokens
    flops = config.flops_per_token(own.pretrain.sequence_length) * trained
    return Rung(depth, trained, config.parameters(), flops, own, held_back)


def run(rung: Rung, tracker: Tracker) -> float:
    """Train a rung unless it is finished; return its loss (nats) on all validation tokens."""
    from llm.train.pretraining import Pretraining

    pretraining = Pretraining(rung.params, TOKENS, f"scaling-{rung.name}")
    state = pretraining.state
    result = state_root() / "scaling-results" / f"{state.fingerprint}.json"
    with state.locked():
        finished = processes.all_gather(result.exists())[0]
        if finished:
            loss = float(read_json(result)["val_loss"])
        else:
            loss = pretraining.trainer(tracker).run().val_loss
        if processes.is_main():
            if not finished:
                write_json(result, {"val_loss": loss, "rung": rung.name})
            shutil.rmtree(state.directory)  # remove its checkpoints; only the loss is needed
        processes.barrier()
    return loss


def conclude(p: Params, ladder: list[Rung], losses: list[float], vocabulary: int) -> dict[str, Any]:
    """Return the ladder's law, its prediction of the held-back run, and best sizes for budgets.

    Args:
        losses: loss of each run, in the order of the ladder.
    """
    s = p.scaling
    n, d, l = (
        np.array(x, dtype=float)
        for x in zip(*((r.parameters, r.tokens, y) for r, y in _pairs(ladder, losses)), strict=True)
    )
    law = scaling_law.fit(n, d, l)
    resampled = scaling_law.bootstrap(n, d, l, s.bootstrap, p.seed)
    confidence = p.evaluate.confidence

    def with_interval(value: Any) -> dict[str, float]:
        low, high = scaling_law.interval([value(other) for other in resampled], confidence)
        return {"value": value(law), "low": low, "high": high}

    last, observed = ladder[-1], losses[-1]
    optimal = [
        _optimal(p, law, with_interval, vocabulary, last.flops * factor) for factor in LARGER
    ]
    predicted = with_interval(lambda law: float(law.loss(last.parameters, last.tokens)))
    return {
        "runs": [
            rung.size() | {"loss": loss, "fitted": float(law.loss(rung.parameters, rung.tokens))}
            for rung, loss in _pairs(ladder, losses)
        ],
        "law": {
            name: with_interval(lambda law, name=name: float(getattr(law, name)))
            for name in scaling_law.NAMES
        }
        | {"exponent": with_interval(lambda law: law.exponent)},
        "held_back": {
            **last.size(),
            "observed": observed,
            "predicted": predicted,
            "error": observed - predicted["value"],
            "within": predicted["low"] <= observed <= predicted["high"],
        },
        "optimal": [best | {"beyond": _beyond(best, n, d)} for best in optimal],
        "E_determined": with_interval(lambda law: law.E)["high"] > DETERMINED * float(l.min()),
        "resamples": s.bootstrap,
        "confidence": confidence,
    }


def _pairs(ladder: list[Rung], losses: list[float]) -> list[tuple[Rung, float]]:
    return [(rung, loss) for rung, loss in zip(ladder, losses, strict=True) if not rung.held_back]


def _optimal(
    p: Params, law: Law, with_interval: Any, vocabulary: int, flops: float
) -> dict[str, Any]:
    """Return the model of the dial with the least loss for a budget, by the FLOPs that it takes.

    `by_formula` is the best size by C = 6 N D, which need not be a size of the dial.
    """
    length = p.pretrain.sequence_length
    models = [(depth, *shape_of(p, vocabulary, depth, length)) for depth in DEPTHS]
    depth, parameters, per_token = min(models, key=lambda m: float(law.loss(m[1], flops / m[2])))
    tokens = flops / per_token
    return {
        "flops": flops,
        "depth": depth,
        "parameters": parameters,
        "tokens": round(tokens),
        "loss": with_interval(lambda law: float(law.loss(parameters, tokens))),
        "by_formula": with_interval(lambda law: law.optimal(flops)[0]),
    }


def _beyond(best: dict[str, Any], parameters: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    """Return the model's parameters and tokens as multiples of the ladder's largest, at least 1."""
    return {
        "parameters": max(1.0, best["parameters"] / float(parameters.max())),
        "tokens": max(1.0, best["tokens"] / float(tokens.max())),
    }


def shape_of(p: Params, vocabulary: int, depth: int, length: int) -> tuple[int, float]:
    """Return parameters and training FLOPs a token of the dial's model of this depth."""
    data = p.model_dump(mode="json")
    model = data["model"] | {"depth": depth, **dict.fromkeys(SHAPE, AUTO)}
    own = resolve({**data, "model": model})["model"]
    config = Config(
        vocab_size=vocabulary, **{key: value for key, value in own.items() if key != "depth"}
    )
    return config.parameters(), config.flops_per_token(length)


def announce(ladder: list[Rung]) -> None:
    """Print runs, sizes, FLOPs and expected time of the ladder."""
    from llm.parallel import hardware
    from llm.plan import UTILISATION
    from llm.plan.gpus import this_machine
    from llm.runtime.units import duration

    machine = this_machine(ladder[0].params.pretrain.precision)
    total = sum(rung.flops for rung in ladder)
    seconds = 0.0
    for rung in ladder:
        compiled = hardware.compiles(rung.params.pretrain.compile, machine.where, rung.flops)
        kind = "cuda" if machine.where.type == "cuda" else "cpu"
        seconds += rung.flops / (machine.rate * machine.devices * UTILISATION[kind, compiled])
    sizes = sorted({rung.parameters for rung in ladder})
    print(
        f"scaling: {len(ladder)} runs of {sizes[0]:,} to {sizes[-1]:,} parameters, the last held back · {total:.2e} "
        f"FLOPs · about {duration(seconds)} on {machine.name}; finished runs are kept",
        flush=True,
    )


def describe(result: dict[str, Any]) -> list[str]:
    """Return the result in a few lines."""
    constants, held = result["law"], result["held_back"]

    def shown(score: dict[str, float], digits: int = 3) -> str:
        return (
            f"{score['value']:.{digits}g} [{score['low']:.{digits}g}, {score['high']:.{digits}g}]"
        )

    best = result["optimal"][0]
    far = [f"{n:.3g} times the ladder's {key}" for key, n in best["beyond"].items() if n > 1]
    undetermined = "scaling: E, which no model can fall below, is not determined: the ladder's losses lie far above it"
    return [
        f"scaling: L = {shown(constants['E'])} + {constants['A']['value']:.4g} / N^{shown(constants['alpha'])} + "
        f"{constants['B']['value']:.4g} / D^{shown(constants['beta'])}, from {len(result['runs'])} runs",
        f"scaling: the held-back run ({held['parameters']:,} parameters, {held['tokens']:,} tokens) was predicted at "
        f"{shown(held['predicted'], 4)}, and came to {held['observed']:.4f} "
        f"({'within' if held['within'] else 'outside'} the interval, {100 * held['error'] / held['observed']:+.1f} %)",
        f"scaling: for {best['flops']:.2g} FLOPs the best is depth {best['depth']}: {best['parameters']:,} parameters, "
        f"{best['tokens']:,} tokens, loss {shown(best['loss'], 4)}"
        + (f"; {', '.join(far)}" if far else ""),
        *([] if result["E_determined"] else [undetermined]),
    ]
