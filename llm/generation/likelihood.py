"""Likelihood of a text that is longer than the context."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from llm.model.transformer import Transformer

if TYPE_CHECKING:
    from llm.data.shards import TokenStream


@torch.inference_mode()
def stream_nll(
    model: Transformer, stream: TokenStream, sequence_length: int, batch_size: int = 16
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the negative log-likelihood of a stream, in windows that do not overlap.

    Every token but the first of the stream is predicted once, from those before it in its window.
    Processes of one launch share the batches, and all of them get all results.

    Returns:
        The summed loss (nats, float64) and the number of predicted tokens of each window
            (windows,), and the summed loss of each document (documents,), including its end token.
    """
    from llm.parallel import processes

    device = next(model.parameters()).device
    total = len(stream) - 1
    starts = list(range(0, total, sequence_length))
    batches = []
    for first in range(0, len(starts), batch_size):
        full = [
            i
            for i in range(first, min(first + batch_size, len(starts)))
            if starts[i] + sequence_length <= total
        ]
        short = [
            i
            for i in range(first, min(first + batch_size, len(starts)))
            if starts[i] + sequence_length > total
        ]
        # The last window may be shorter; then it is a batch of its own.
        batches += [group for group in (full, short) if group]

    def read(group: list[int]) -> np.ndarray:
        length = min(sequence_length, total - starts[group[0]])
        return np.stack([stream.read(starts[i], length + 1) for i in group]).astype(np.int64)

    own_losses = {}
    for number in range(processes.rank(), len(batches), processes.world_size()):
        data = torch.from_numpy(read(batches[number])).to(device)
        logits = model(data[:, :-1]).float()
        loss = (
            F.cross_entropy(logits.flatten(0, 1), data[:, 1:].flatten(), reduction="none")
            .double()
            .cpu()
        )
        own_losses[number] = loss.view(len(data), -1)
    losses = processes.all_gather_dict(own_losses)

    sums, counts = np.zeros(len(starts)), np.zeros(len(starts), dtype=np.int64)
    documents = np.zeros(1)
    # Number of the document that the next token belongs to.
    current = int(len(stream) > 0 and int(stream.read(0, 1)[0]) == stream.eos_id)
    for number, group in enumerate(batches):
        loss = losses[number]
        sums[group] = loss.sum(1).numpy()
        counts[group] = loss.shape[1]
        ended = np.cumsum(read(group)[:, 1:].ravel() == stream.eos_id)
        # The document of each token; an end token belongs to the document that it ends.
        document = current + np.concatenate([[0], ended[:-1]])
        first, last = int(document[0]), int(document[-1])
        if last >= len(documents):
            documents = np.concatenate([documents, np.zeros(last + 1 - len(documents))])
        documents[first : last + 1] += np.bincount(document - first, weights=loss.flatten().numpy())
        current += int(ended[-1])
    return sums, counts, documents
