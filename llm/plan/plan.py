"""The cost of one training stage, as text, and the check that the machine can hold it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from llm.errors import UserError
from llm.runtime.state_dirs import repository
from llm.runtime.units import duration, size
from llm.train.memory import Memory


@dataclass(frozen=True)
class Plan:
    """One training stage on one machine, in bytes, seconds and tokens.

    `epochs` is None before the data exists.
    """

    stage: str
    architecture: str
    parameters: int
    embedding_parameters: int
    trained_parameters: int
    batch_tokens: int
    steps: int
    tokens: int
    epochs: float | None
    data: str  # source of epochs or steps, as text
    flops: float
    seconds: float
    utilisation: float
    utilisation_from: str
    matmul_flops_per_second: float  # rate of one device
    rate_from: str
    device: str
    devices: int  # GPUs that share the work; 1 on a CPU
    dtype: str
    compiled: bool
    micro_batch: int
    sequence_length: int
    memory: Memory  # needed by one process
    memory_total: int  # RAM that the machine's processes share, or one GPU's memory
    processes: int  # number that share it
    disk: int
    disk_free: int | None  # None for another machine
    optimal_parameters: int
    optimal_tokens: int

    @property
    def needed(self) -> int:
        """Return the memory of all processes that share it."""
        return self.processes * self.memory.peak

    def check(self, kept: int = 0) -> None:
        """Raise UserError if memory or disk cannot hold the run.

        Args:
            kept: bytes of its checkpoints that exist already.
        """
        if self.needed > self.memory_total:
            parts = sorted(asdict(self.memory).items(), key=lambda item: -item[1])
            shown = ", ".join(f"{name} {size(value)}" for name, value in parts[:3])
            raise UserError(
                f"{self.stage}: the run needs about {size(self.needed)} of memory ({shown}), and this machine has "
                f"{size(self.memory_total)}. Lower the model's size (model.hidden_size, model.num_hidden_layers, "
                f"model.depth) or {self.stage}.sequence_length; `python -m llm plan` shows all parts."
            )
        if self.disk_free is not None and self.disk - kept > self.disk_free:
            raise UserError(
                f"{self.stage}: checkpoints and model need {size(self.disk)} of disk, and {repository()} has "
                f"{size(self.disk_free)} free. Free some (`python -m llm state --prune`, "
                "`dvc gc --all-commits --all-experiments`), or lower the model's size."
            )

    def summary(self) -> list[str]:
        """Return two lines for a stage's log; the stage prints size and steps itself."""
        return [
            f"{self.stage}: about {duration(self.seconds)}, at {100 * self.utilisation:.0f} % of "
            f"{self.matmul_flops_per_second / 1e9:,.0f} GFLOP/s ({self.utilisation_from})",
            f"{self.stage}: memory {size(self.needed)} of {size(self.memory_total)} · disk {self._disk()}",
        ]

    def _disk(self) -> str:
        return size(self.disk) + (
            f" of {size(self.disk_free)} free" if self.disk_free is not None else ""
        )

    def rows(self) -> list[tuple[str, str]]:
        """Return every number of the plan as (name, text)."""
        m = self.memory
        trained = (
            f", {self.trained_parameters:,} of them trained"
            if self.trained_parameters < self.parameters
            else ""
        )
        ratio = self.tokens / self.parameters
        shared = f", in {self.processes} processes of" if self.processes > 1 else ""
        per_device = " on each" if self.devices > 1 else ""
        rows = [
            ("architecture", self.architecture),
            (
                "parameters",
                f"{self.parameters:,} ({self.parameters - self.embedding_parameters:,} without embeddings){trained}",
            ),
            ("tokens", f"{self.tokens:,} in {self.steps:,} steps of {self.batch_tokens:,}"),
            ("epochs", (f"{self.epochs:.2f} · " if self.epochs is not None else "") + self.data),
            ("FLOPs", f"{self.flops:.3g}"),
        ]
        if self.stage == "pretrain":
            rows.append(
                (
                    "compute-optimal",
                    f"{self.optimal_parameters:,} parameters, {self.optimal_tokens:,} tokens for these FLOPs "
                    f"(20 tokens a parameter; here {ratio:.1f})",
                )
            )
        return [
            *rows,
            (
                "device",
                f"{self.device}, {self.dtype}, {'compiled' if self.compiled else 'not compiled'}, micro-batches of "
                f"{self.micro_batch} × {self.sequence_length} tokens",
            ),
            (
                "time",
                f"about {duration(self.seconds)}, at {100 * self.utilisation:.0f} % of the "
                f"{self.matmul_flops_per_second / 1e9:,.0f} GFLOP/s {self.rate_from} ({self.utilisation_from})",
            ),
            (
                "memory",
                f"about {size(self.needed)} of {size(self.memory_total)}{shared}{per_device}:",
            ),
            (
                "",
                f"weights {size(m.weights)}, gradients {size(m.gradients)}, optimizer {size(m.optimizer)},",
            ),
            (
                "",
                f"activations {size(m.activations)}, loss {size(m.loss)}, checkpoint {size(m.checkpoint)},",
            ),
            ("", f"libraries and compiler {size(m.runtime)}"),
            ("disk", f"{self._disk()}, for checkpoints and the model"),
        ]
