"""Losses of preference: functions of the log-probabilities of two answers to one prompt.

With c and r the log-probabilities of the chosen and the rejected answer under the model, c' and r'
those under the reference (the model before training), and c̄ and r̄ their means over tokens:

    dpo    -log σ(β ((c - c') - (r - r')))                                    arXiv:2305.18290, eq. 7
    ipo    (((c̄ - c̄') - (r̄ - r̄')) - 1 / 2β)²                               arXiv:2310.12036, eq. 17
    orpo   -c̄ - β log σ(logit(exp c̄) - logit(exp r̄))                        arXiv:2403.07691, eq. 6
    simpo  -log σ(β (c̄ - r̄) - γ)                                            arXiv:2405.14734, eq. 6

ipo takes means in place of the paper's sums, as trl does on its authors' advice. orpo and simpo
need no reference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.model.loss import cross_entropy, token_losses
from llm.model.transformer import Transformer


class Answers(NamedTuple):
    """Two answers to each prompt; every tensor is (pairs, 2): chosen, rejected."""

    policy: Tensor  # log-probabilities under the model
    reference: Tensor  # under the reference
    tokens: Tensor  # number of tokens, the end token included


def preference_loss(method: str, answers: Answers, beta: float, gamma: float) -> Tensor:
    """Return the loss of each pair, (pairs,); the formulas are above."""
    tokens = answers.tokens.clamp(min=1)
    mean = answers.policy / tokens
    if method == "dpo":
        gains = answers.policy - answers.reference
        return -F.logsigmoid(beta * (gains[:, 0] - gains[:, 1]))
    if method == "ipo":
        gains = mean - answers.reference / tokens
        return (gains[:, 0] - gains[:, 1] - 1 / (2 * beta)) ** 2
    if method == "orpo":
        # A probability of one has no finite odds.
        odds = mean - torch.log(-torch.expm1(mean.clamp(max=-1e-6)))
        return -mean[:, 0] - beta * F.logsigmoid(odds[:, 0] - odds[:, 1])
    return -F.logsigmoid(beta * (mean[:, 0] - mean[:, 1]) - gamma)


def answers_of(
    losses: Tensor, targets: Tensor, answers: Tensor, reference: Tensor
) -> tuple[Answers, Tensor]:
    """Add up the tokens of each answer of some rows.

    Args:
        losses: cross-entropy of each target, (rows, seq).
        targets: token ids, -100 where there is none, (rows, seq).
        answers: the number of each target's answer in its row, as in `PairRows`, (rows, seq).
        reference: as in `PairRows`, (rows, seq).

    Returns:
        The answers of all places where a row may have a pair, (rows · ceil(seq / 2), 2), those of no
        pair with 0 tokens; and the place of each target's answer in them, flattened, (rows, seq).
    """
    rows, seq = targets.shape
    width = seq + seq % 2
    first = torch.arange(rows, device=targets.device)[:, None] * width
    places = first + (answers - 1).clamp(min=0)
    counted = (targets != -100).float()

    def added(values: Tensor) -> Tensor:
        sums = torch.zeros(rows * width, device=values.device)
        return sums.index_add(0, places.flatten(), (values * counted).flatten()).view(-1, 2)

    return Answers(added(-losses), added(reference), added(counted)), places


class PreferenceLoss:
    """The summed loss of the pairs of some rows, in place of `Transformer.loss`.

    The loss depends on the model through sums of token log-probabilities alone. So a first pass over
    the output projection gives the sums and the slope of the loss in each; a second one is the
    cross-entropy in chunks with these slopes as weights, whose gradient is that of the loss.
    """

    def __init__(self, model: Transformer, method: str, beta: float, gamma: float) -> None:
        self.model, self.method, self.beta, self.gamma = model, method, beta, gamma

    def __call__(
        self,
        input_ids: Tensor,
        targets: Tensor,
        segments: Tensor,
        positions: Tensor,
        answers: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> Tensor:
        """Return the loss, a float32 scalar; the arguments are `PairRows`, (rows, seq) each.

        Without `answers` it is the cross-entropy, which needs as much memory: the trial batch on a
        GPU has no pairs.
        """
        model = self.model
        hidden = model.hidden_states(input_ids, positions, segments)
        weight, compute = model.lm_head.weight, model.chunk_loss
        if answers is None or reference is None:
            return cross_entropy(hidden, weight, targets, compute)
        losses = token_losses(hidden, weight, targets)
        sums, places = answers_of(losses, targets, answers, reference)
        with torch.enable_grad():
            policy = sums.policy.requires_grad_()
            pairs = preference_loss(
                self.method, sums._replace(policy=policy), self.beta, self.gamma
            )
            loss = torch.where(sums.tokens[:, 0] > 0, pairs, 0.0).sum()
            (slopes,) = torch.autograd.grad(loss, policy)
        loss = loss.detach()
        if not torch.is_grad_enabled():
            return loss
        weighted = cross_entropy(hidden, weight, targets, compute, -slopes.flatten()[places])
        return weighted + (loss - weighted.detach())
