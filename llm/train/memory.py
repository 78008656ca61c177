"""Formulas for the memory and disk that training needs, known before anything is allocated.

All figures are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from llm.model.config import Config
from llm.model.loss import CHUNK_LOGITS, CHUNK_LOGITS_CUDA, MIN_CHUNK
from llm.model.quantized import BITS
from llm.train.adapter_size import NO_ADAPTER, AdapterSize

FLOAT32 = 4
CHECKPOINTS = 3  # on disk at a time: the two that are kept and the one that is being written

# What a training stage holds besides its tensors (docs/LOG.md, "Predicted and measured memory").
RUNTIME = {
    "cpu": 860_000_000,
    "cuda": 600_000_000,
}  # torch, MLflow, pandas | the CUDA context, an estimate
COMPILER = (
    750_000_000  # torch.compile in this process, and the largest of the processes that it starts
)


@dataclass(frozen=True)
class Memory:
    """The parts of the peak."""

    weights: int  # float32 masters, those of an adapter included
    gradients: int
    optimizer: int
    activations: (
        int  # kept for the backward pass of one micro-batch, and the backward pass of one layer
    )
    loss: int  # logits of one chunk, and the gradient of the output projection
    # the copy that is written while training goes on; 0 on a GPU, where it lies in the host's
    # memory
    checkpoint: int
    runtime: int  # libraries and compiler

    @property
    def peak(self) -> int:
        """All parts at once: an upper bound, since activations are gone when a checkpoint is
        copied.
        """
        return sum(getattr(self, field.name) for field in fields(self))


def layer_activations(
    config: Config, sequence_length: int, width: int, fused: bool, plain_attention: bool
) -> int:
    """Bytes a token that one layer keeps for its backward pass. tests/train/test_memory.py counts
    them in autograd.

    The counting is that of Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1) for this layer:
    inputs of matrix products and what norms, rotation and SwiGLU need.

    Args:
        width: bytes of an activation, 2 or 4.
        fused: torch.compile recomputes norms and products of elements instead of keeping their
            float32 steps.
        plain_attention: attention as two matrix products, which keeps the (heads, seq, seq)
            probabilities.
    """
    h, i = config.hidden_size, config.intermediate_size
    q, kv = (
        heads * config.head_dim
        for heads in (config.num_attention_heads, config.num_key_value_heads)
    )
    normed = q + kv if config.qk_norm else 0
    if fused:
        kept = width * (3 * i + 4 * h + 4 * q + normed)
    else:
        kept = width * (4 * i + 2 * h + 4 * q) + FLOAT32 * (4 * h + 2 * normed)
    if plain_attention:
        copies = 2 if width == 2 else 1  # in bfloat16 both the products' and the softmax's own
        kept += copies * width * config.num_attention_heads * sequence_length
    return kept


def training_memory(
    config: Config,
    *,
    optimizer: str,
    sequence_length: int,
    micro_batch: int,
    width: int,
    compiled: bool,
    device: str,
    adapter: AdapterSize = NO_ADAPTER,
    checkpointing: bool = False,
    quantized: bool = False,
    stored: str | None = None,
    shards: int = 1,
) -> Memory:
    """Peak memory of a process that trains on `micro_batch` sequences at a time.

    Args:
        adapter: what is trained in place of the whole model.
        quantized: the layers' matrices are in 4 bits (llm/model/quantized.py).
        stored: type of a frozen base's weights, such as bfloat16; None: float32.
        shards: processes over which weights, gradients and optimizer are spread (FSDP). Each has
            besides, whole: the embeddings, and two layers, of which one computes and the next one
                comes.
        checkpointing: layers keep their inputs only and compute the rest again (Chen et al. 2016,
            arXiv:1604.06174).
    """
    trained = adapter.parameters or config.parameters()
    tokens = micro_batch * sequence_length
    token = layer_activations(
        config, sequence_length, width, compiled, compiled and device == "cpu"
    )
    layer = (token + width * adapter.outputs) * tokens
    layers = config.num_hidden_layers
    if checkpointing:
        kept = layers * width * config.hidden_size * tokens + 2 * layer
    else:
        kept = (layers + 1) * layer
    matrices = layer_matrices(config)
    kind, bytes_stored = stored or "float32", stored_bytes(stored)
    # Weights in the activations' type, kept for the backward pass; layers that are computed again
    # keep none.
    cast = 0 if kind == {2: "bfloat16", 4: "float32"}[width] else width * matrices
    if checkpointing:
        cast = 2 * cast // layers
    chunk = max(
        MIN_CHUNK, (CHUNK_LOGITS_CUDA if device == "cuda" else CHUNK_LOGITS) // config.vocab_size
    )
    logits = min(chunk, tokens) * config.vocab_size * (2 * FLOAT32 + 2 * width)
    head = 0 if adapter.parameters else 2 * FLOAT32 * config.vocab_size * config.hidden_size
    state = FLOAT32 * trained + optimizer_bytes(config, optimizer, adapter)
    weights = bytes_stored * config.parameters() + FLOAT32 * adapter.parameters
    if quantized:
        weights -= int((bytes_stored - BITS / 8) * matrices)
        cast = (
            width * config.hidden_size * config.intermediate_size
        )  # one matrix at a time, unpacked
    cast += FLOAT32 * adapter.working
    gathered = 0
    if shards > 1:
        cast = (
            0  # they travel in the activations' type, and are gathered again for the backward pass
        )
        gathered = FLOAT32 * (
            config.parameters() - matrices + 2 * matrices // config.num_hidden_layers
        )
    step = optimizer_step_bytes(config, optimizer, adapter) // shards
    return Memory(
        weights=weights // shards + gathered,
        gradients=FLOAT32 * trained // shards + (0 if adapter.parameters else gathered),
        optimizer=optimizer_bytes(config, optimizer, adapter) // shards,
        activations=max(kept + cast, step),
        loss=logits + head + width * config.vocab_size * config.hidden_size,
        checkpoint=2 * state // shards
        if device == "cpu"
        else 0,  # the copy, and its bytes while safetensors writes them
        runtime=RUNTIME["cuda" if device == "cuda" else "cpu"]
        + (COMPILER if compiled and device == "cpu" else 0),
    )


def layer_matrices(config: Config) -> int:
    """Weights of the layers' matrices."""
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return config.parameters() - embeddings


def optimizer_bytes(config: Config, optimizer: str, adapter: AdapterSize = NO_ADAPTER) -> int:
    """AdamW keeps two float32 moments a parameter; Muon, which has the layers' matrices, one."""
    trained = adapter.parameters or config.parameters()
    matrices = adapter.matrices if adapter.parameters else layer_matrices(config)
    muon = matrices if optimizer == "muon" else 0
    return FLOAT32 * (muon + 2 * (trained - muon))


def optimizer_step_bytes(config: Config, optimizer: str, adapter: AdapterSize = NO_ADAPTER) -> int:
    """Muon's working memory: about 16 bytes a weight of the largest group of equal shapes,
    gate_proj and up_proj.
    """
    if optimizer != "muon":
        return 0
    largest = 2 * config.num_hidden_layers * config.hidden_size * config.intermediate_size
    return 16 * (adapter.matrices if adapter.parameters else largest)


def training_disk(
    config: Config, optimizer: str, adapter: AdapterSize = NO_ADAPTER, stored: str | None = None
) -> int:
    """Disk that a training stage fills: its checkpoints, the model (of type `stored`) and the
    adapter.
    """
    trained = adapter.parameters or config.parameters()
    state = FLOAT32 * trained + optimizer_bytes(config, optimizer, adapter)
    return (
        CHECKPOINTS * state
        + stored_bytes(stored) * config.parameters()
        + FLOAT32 * adapter.parameters
    )


def stored_bytes(stored: str | None) -> int:
    """Bytes of a weight of that type; None: float32."""
    return 2 if stored in ("bfloat16", "float16") else FLOAT32
