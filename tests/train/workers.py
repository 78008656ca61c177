"""Processes that train together: `python -m tests.train.workers RANK`, four of them for a whole
test file.

Importing torch costs more than the runs do, so each is forked from `tests.warm`, takes many jobs, a
line of JSON on standard input, and forks for each: that process joins the others of the job as
under torchrun, and answers with a line of JSON."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from tests import warm

if TYPE_CHECKING:
    from torch import Tensor

    from llm.model.transformer import Transformer

ROOT = Path(__file__).parents[2]
# rows: five micro-batches a step, of which the last has one row, so that no number of processes
# divides them
MICRO = 2
BATCH = 9
ROWS = 4096
PATIENCE = 300.0  # seconds for an answer, on a busy machine


class Workers:
    """Four processes that wait for jobs."""

    def __init__(self) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.processes = [
            subprocess.Popen(
                [warm.python(), "-m", "tests.train.workers", str(rank)],
                cwd=ROOT,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(4)
        ]

    def run(self, world: int, root: Path, **job: Any) -> list[dict[str, Any]]:
        """Run a job on the first `world` processes, with its state below `root`; what each answers,
        by rank.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        line = json.dumps({"world": world, "port": port, "root": str(root), **job}) + "\n"
        for process in self.processes[:world]:
            assert process.stdin is not None
            process.stdin.write(line)
            process.stdin.flush()
        answers = []
        for process in self.processes[:world]:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
            assert ready, f"no answer to {line}"
            answers.append(json.loads(process.stdout.readline()))
        return answers

    def close(self) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def work(rank: int, job: dict[str, Any]) -> dict[str, Any]:
    """One job in one process.

    steps, optimizer: of the run. copy: a root whose state is continued. stop: the last process is
        told to stop in this
    step. broken: in this process nothing can be read from a later step on. unread: in this one, no
        rows. lora: dropout
    of an adapter. inputs: what the run depends on, by process. sharded: the model is, made on the
        meta device. hang:
    this process sleeps in the third step. timeout: seconds that the others wait. precision: of the
    activations; by
    process where they differ. cards: by process, the kind of its card and the largest micro-batch
        that fits it.
    """
    from llm.errors import UserError
    from llm.model.lora import add_lora
    from llm.model.sharded_tensor import unshard
    from llm.parallel import processes
    from llm.train import micro_batch
    from llm.train.checkpoint.local import State
    from llm.train.trainer import Trainer
    from tests.model.conftest import random_model
    from tests.train.test_trainer import LENGTH, Sequences, Silent, settings

    class Recording(Sequences):
        """Too many rows to learn by heart, a third of their tokens noise. Remembers each call."""

        num_rows = ROWS

        def __init__(self) -> None:
            generator = np.random.default_rng(0)
            start = generator.integers(1, 200, size=(self.num_rows, 1))
            pattern = (start + 3 * np.arange(LENGTH + 1)) % 299 + 1
            noise = generator.integers(1, 300, size=pattern.shape)
            self.data = np.where(generator.random(pattern.shape) < 1 / 3, noise, pattern)
            self.seen = []

        def rows(self, ids: np.ndarray) -> Any:
            calls.append(ids.tolist())
            if (rank == job.get("broken") or (rank == job.get("unread") and len(ids))) and len(
                calls
            ) > 4:
                raise UserError("data/tokens/train-00000.npy cannot be read")
            return super().rows(ids)

    class Stoppable(Trainer):
        def step(self, step: int, batches: Any) -> tuple[float, float, float]:
            if step + 1 == job.get("stop") and rank == job["world"] - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            if step == 2 and rank == job.get("hang"):
                time.sleep(job["timeout"] + 8)
            return super().step(step, batches)

    micro_batch.default_micro_batch = lambda *_: MICRO
    calls: list[list[int]] = []
    world, root = job["world"], Path(job["root"])
    if rank == 0 and job.get("copy"):
        shutil.copytree(job["copy"], root)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(job["port"]),
        "DVC_ROOT": str(root),
    }
    os.environ["LLM_TIMEOUT_SECONDS"] = str(job.get("timeout", 600))
    if "start" in job:
        return filled(job)
    model = random_model(0, qk_norm=True)
    if "lora" in job:
        add_lora(model, 4, 8.0, job["lora"], ["q_proj", "down_proj"], 0)
    if job.get("sharded") and world > 1:
        model = to_shard(model)
    model.train()
    precision = job.get("precision", "fp32")
    precision = precision if isinstance(precision, str) else precision[rank]
    changes = {"optimizer": job.get("optimizer", "adamw"), "precision": precision}
    training = settings(batch_tokens=BATCH * LENGTH, eval_every=50, **changes)
    inputs = job["inputs"][rank] if "inputs" in job else {"run": "one"}
    state, held_out = State("pretrain", inputs), Sequences()
    answer: dict[str, Any] = {}
    try:
        with (
            processes.process_group(),
            state.locked(),
            card(*job["cards"][rank]) if "cards" in job else nullcontext(),
        ):
            trainer = Stoppable(
                model, Recording(), held_out, held_out, training, job["steps"], 1, state, Silent()
            )
            answer["held"] = sum(local(p).numel() for p in model.parameters())
            result = trainer.run()
            answer |= {
                "history": result.history,
                "val_loss": result.val_loss,
                "timing": result.timing,
            }
            if trainer.engine.sharded:
                unshard(model, keep=True)
    except (UserError, SystemExit) as error:
        answer["error"] = str(error)
    values = {name: local(value.detach()) for name, value in model.state_dict().items()}
    weights = {
        name: value.numpy() for name, value in values.items() if not value.is_meta
    }  # it failed before it began
    digest = hashlib.sha256(
        b"".join(weights[name].tobytes() for name in sorted(weights))
    ).hexdigest()
    if rank == 0:
        np.savez(root / "weights.npz", **weights)
    return answer | {
        "calls": calls,
        "digest": digest,
        "micro": trainer.engine.micro if "history" in answer else None,
    }


@contextlib.contextmanager
def card(kind: str, most: int) -> Iterator[None]:
    """As if this process had such a card, whose memory holds so many rows; a dry batch of four
    finds it.
    """
    import torch

    from llm.model.transformer import Transformer
    from llm.parallel import hardware
    from llm.train import micro_batch

    loss = Transformer.loss

    def short_of_memory(self: Transformer, **tensors: Tensor) -> Tensor:
        if len(tensors["input_ids"]) > most:
            raise torch.OutOfMemoryError("no room")
        return loss(self, **tensors)

    def tried(stage: str, model: Transformer, data: Any, *_: Any) -> int:
        return micro_batch.fitting_in_shards(
            stage, model, data, 4, torch.device("cpu"), compiled=False
        )

    with (
        mock.patch.object(Transformer, "loss", short_of_memory),
        mock.patch.object(micro_batch, "sharded_micro_batch", tried),
        mock.patch.object(hardware, "name", return_value=kind),
    ):
        yield


def started(job: dict[str, Any], sharded: bool) -> Transformer:
    """What `job["start"]` begins with: `new` weights, with the circuit, or a directory's, with an
    adapter.
    """
    from llm.model.config import Config
    from llm.model.hf_files import load_model, model_to_shard
    from llm.model.induction import seed_induction
    from llm.model.lora import add_lora, draw_lora
    from llm.model.transformer import Transformer
    from llm.train.initial_model import new_model_to_shard

    if job["start"] == "new":
        config = Config(**job["config"])
        if sharded:
            return new_model_to_shard(config, 7, induction=True)
        model = Transformer(config)
        model.initialize(7)
        seed_induction(model, 7)
        return model
    model = (
        model_to_shard(job["start"], keep_stored=True)
        if sharded
        else load_model(job["start"], keep_stored=True)
    )
    add_lora(model, 3, 8.0, 0.0, ["q_proj", "down_proj"], 5)
    if model.fill is not None:
        read = model.fill
        model.fill = lambda: (read(), draw_lora(model, 5))[1]
    return model


def filled(job: dict[str, Any]) -> dict[str, Any]:
    """Digests of a started model's parameters, and their largest part in this process."""
    import torch

    from llm.model.sharded_tensor import whole
    from llm.parallel import processes
    from llm.train import fsdp

    with processes.process_group():
        model = started(job, sharded=job["world"] > 1)
        if job["world"] > 1:
            fsdp.shard(model, torch.device("cpu"), torch.bfloat16, compiled=False)
        digests, held = {}, 0
        for name, parameter in model.named_parameters():
            value = whole(parameter.detach())
            digests[name] = (
                f"{value.dtype} {hashlib.sha256(value.view(torch.uint8).numpy()).hexdigest()}"
            )
            held += local(parameter).numel()
        return {"digests": digests, "held": held}


def to_shard(model: Transformer) -> Transformer:
    """The model on the meta device, whose `fill` gives it its present values."""
    from llm.model.sharded_tensor import fill

    values = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.to("meta")

    def values_back() -> None:
        for name, value in values.items():
            fill(model.get_parameter(name), value)

    model.fill = values_back
    return model


def local(tensor: Tensor) -> Tensor:
    """This process's part."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def answered(rank: int, job: dict[str, Any]) -> str:
    """The answer to a job, with what was said meanwhile."""
    os.dup2(2, 1)
    with tempfile.TemporaryFile("w+") as said:
        with contextlib.redirect_stderr(said):
            answer = work(rank, job)
        said.seek(0)
        answer["said"] = said.read()
    return json.dumps(answer)


def main() -> None:
    for name in ("llm.model.lora", "llm.train.fsdp", "tests.train.test_trainer"):  # of each job
        importlib.import_module(name)

    rank = int(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        # A process for each job: nothing of one is left for the next, and one that fails ends, and
        # its connections with it, as the others expect.
        if (pid := os.fork()) == 0:
            print(answered(rank, json.loads(line)), file=answers, flush=True)
            os._exit(0)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
