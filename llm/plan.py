"""What a run will take, before it takes it, and a refusal where that does not fit the machine."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llm import params, preset, scaling
from llm.errors import UserError
from llm.io import read_json
from llm.machines import Machine, gpus, this_machine
from llm.model.config import Config
from llm.model.files import load_config
from llm.params import Params, Training
from llm.train import distributed, hardware, sharding
from llm.train.memory import Memory, adapter_parameters, training_disk, training_memory
from llm.train.state import root

# Share of the measured matrix-product rate that training reaches where no earlier run tells. CPU: docs/LOG.md, "When
# compiling pays". CUDA: 38 to 43 % of the peak on H100s (Llama 3, arXiv:2407.21783, table 4).
UTILISATION = {("cpu", True): 0.5, ("cpu", False): 0.3, ("cuda", True): 0.4, ("cuda", False): 0.3}
BYTES_A_TOKEN = 4.4  # of English web text in GPT-2's vocabulary: OpenWebText is 39.8 GB and 9.04e9 tokens (nanoGPT)
REPEATS = 4  # epochs until repeated text is worth less than new text (Muennighoff et al. 2023, arXiv:2305.16264)


@dataclass(frozen=True)
class Plan:
    """One training stage on this machine. Bytes, seconds, tokens; `epochs` is None where the data is not there yet."""

    stage: str
    architecture: str
    parameters: int
    embedding_parameters: int
    trained_parameters: int
    batch_tokens: int
    steps: int
    tokens: int
    epochs: float | None
    data: str  # where epochs (or steps) come from, in words
    flops: float
    seconds: float
    utilisation: float
    utilisation_from: str
    matmul_flops_per_second: float  # of one device
    rate_from: str
    device: str
    devices: int  # GPUs that share the work; 1 on a CPU
    dtype: str
    compiled: bool
    micro_batch: int
    sequence_length: int
    memory: Memory  # of one process
    memory_total: int  # that the processes on this machine share, or one card's
    processes: int  # that share it
    disk: int
    disk_free: int | None  # None: of a machine that is not this one
    optimal_parameters: int
    optimal_tokens: int

    @property
    def needed(self) -> int:
        """Memory of all processes that share it."""
        return self.processes * self.memory.peak

    def check(self, kept: int = 0) -> None:
        """Raises UserError where memory or disk cannot hold the run; `kept` bytes of its checkpoints exist already."""
        if self.needed > self.memory_total:
            parts = sorted(asdict(self.memory).items(), key=lambda item: -item[1])
            shown = ", ".join(f"{name} {size(value)}" for name, value in parts[:3])
            raise UserError(
                f"{self.stage}: it would need about {size(self.needed)} of memory ({shown}), and this machine has "
                f"{size(self.memory_total)}. Lower the model's size (model.hidden_size, model.num_hidden_layers, "
                f"model.depth) or {self.stage}.sequence_length; `python -m llm plan` shows all parts."
            )
        if self.disk_free is not None and self.disk - kept > self.disk_free:
            raise UserError(
                f"{self.stage}: checkpoints and model need {size(self.disk)} of disk, and {root().absolute()} has "
                f"{size(self.disk_free)} free. Free some (`python -m llm state --prune`, `dvc gc -w`), or lower the "
                "model's size."
            )

    def summary(self) -> list[str]:
        """Two lines for the log of a stage, which prints size and steps itself."""
        return [
            f"{self.stage}: about {duration(self.seconds)}, at {100 * self.utilisation:.0f} % of "
            f"{self.matmul_flops_per_second / 1e9:,.0f} GFLOP/s ({self.utilisation_from})",
            f"{self.stage}: memory {size(self.needed)} of {size(self.memory_total)} · disk {self._disk()}",
        ]

    def _disk(self) -> str:
        return size(self.disk) + (f" of {size(self.disk_free)} free" if self.disk_free is not None else "")

    def rows(self) -> list[tuple[str, str]]:
        """Everything, by name."""
        m = self.memory
        trained = f", {self.trained_parameters:,} of them trained" if self.trained_parameters < self.parameters else ""
        ratio = self.tokens / self.parameters
        shared = f", in {self.processes} processes of" if self.processes > 1 else ""
        each = " on each" if self.devices > 1 else ""
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
            ("memory", f"about {size(self.needed)} of {size(self.memory_total)}{shared}{each}:"),
            ("", f"weights {size(m.weights)}, gradients {size(m.gradients)}, optimizer {size(m.optimizer)},"),
            ("", f"activations {size(m.activations)}, loss {size(m.loss)}, checkpoint {size(m.checkpoint)},"),
            ("", f"libraries and compiler {size(m.runtime)}"),
            ("disk", f"{self._disk()}, for checkpoints and the model"),
        ]


def pretrain_plan(p: Params, config: Config | None = None, machine: Machine | None = None) -> Plan:
    """Of pretraining by params; `config` where the model is at hand, whose vocabulary may be smaller than asked for."""
    s, config = p.pretrain, config or _config(p)
    meta = Path("data/tokens/meta.json")
    epochs, data = None, "not known before tokenize"
    if meta.exists():
        found = int(read_json(meta)["train"]["tokens"])
        epochs = s.steps * s.batch_tokens / found
        repeated = f"; more than {REPEATS} repeat more than they teach" if epochs > REPEATS else ""
        data = f"over the {found:,} training tokens of data/tokens{repeated}"
    evaluated = s.eval_tokens * ((s.steps - 1) // s.eval_every)
    sharded = machine is None and sharding.wanted(config, s)
    return _plan("pretrain", config, s, s.steps, epochs, data, evaluated, 0, machine=machine, sharded=sharded)


def finetune_plan(
    p: Params, config: Config | None = None, steps: int | None = None, machine: Machine | None = None
) -> Plan:
    """Of finetuning by params; `config` and `steps` where the model and the packed examples are at hand."""
    s, config = p.finetune, config or _base_config(p)
    if steps is None:
        tokens, data = _mixture_tokens(p)
        steps = max(1, math.ceil(s.epochs * tokens / s.batch_tokens))
    else:
        data = "over data/mix"
    adapter = {
        "full": 0,
        "prompt_tuning": s.prompt_tuning.num_virtual_tokens * config.hidden_size,
    }.get(s.method, adapter_parameters(config, s.lora.r, s.lora.target_modules))
    evaluated = s.eval_tokens * ((steps - 1) // s.eval_every + 1)
    stored = None if s.method == "full" else _stored(p)
    quantized = s.method == "qlora"
    sharded = machine is None and s.method in ("full", "lora") and sharding.wanted(config, s, adapter)
    return _plan("finetune", config, s, steps, s.epochs, data, evaluated, adapter, quantized, stored, machine, sharded)


def before_training(plan: Plan, state: Path) -> None:
    """Say what the run takes, and refuse it (UserError) where it cannot fit; `state` is where its checkpoints lie."""
    print("\n".join(plan.summary()), flush=True)
    plan.check(kept=sum(path.stat().st_size for path in state.glob("step-*/*")))


def show_plan(
    as_json: bool = False, name: str | None = None, gpu: str | None = None, count: int = 1, price: float | None = None
) -> None:
    """Print the plans of pretraining and finetuning by params.yaml.

    Args:
        name: of a preset that is put over params.yaml for this plan; the file stays as it is.
        gpu, count: plan for these GPUs instead of this machine.
        price: of a GPU for an hour, in any currency.

    Raises:
        UserError: the run cannot fit; no such preset or GPU.
    """
    p = preset.params_with(name) if name else params.load()
    plans = [
        pretrain_plan(p, machine=gpus(gpu, count, p.pretrain.precision) if gpu else None),
        finetune_plan(p, machine=gpus(gpu, count, p.finetune.precision) if gpu else None),
    ]
    if p.finetune.base != params.BASE:
        del plans[0]  # what is finetuned is not pretrained here
    if as_json:
        print(json.dumps({plan.stage: _as_json(plan) for plan in plans}, indent=2))
        return
    if p.model.depth is not None:
        print(f"model.depth {p.model.depth} gives:")
        for section, values in (("model", p.model), ("pretrain", p.pretrain)):
            shown = {k: v for k, v in values.model_dump().items() if k in (*scaling.SHAPE, *scaling.TRAINING)}
            print(f"  {section}: " + ", ".join(f"{key} {value:,}" for key, value in shown.items()))
        print()
    for plan in plans:
        _table(plan.stage, plan.rows())
    together = [("time", f"about {duration(sum(plan.seconds for plan in plans))} of training")]
    if price is not None:
        hours = sum(plan.seconds * plan.devices for plan in plans) / 3600
        together.append(("cost", f"about {hours * price:,.2f}, {hours:,.1f} GPU hours at {price:g}"))
    if (text := _text_bytes(p)) is not None:
        tokens = 2 * text / BYTES_A_TOKEN * (1 if _config(p).vocab_size <= 65536 else 2)
        together.append(
            ("data", f"at most about {size(text)} in data/raw (less, compressed), {size(tokens)} of tokens")
        )
    _table("together", together)
    for plan in plans:
        plan.check()


def _table(title: str, rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    print(title)
    for name, value in rows:
        print(f"  {name:{width}}  {value}")
    print()


def _text_bytes(p: Params) -> int | None:
    """Bytes of text that the hub sources are cut to; None where there is none with a limit."""
    limits = [limit for source in p.download.values() if (limit := getattr(source, "max_bytes", None))]
    return sum(limits) if limits else None


def _as_json(plan: Plan) -> dict[str, Any]:
    values = asdict(plan)
    values["memory"]["peak"] = plan.memory.peak
    return values


def _config(p: Params) -> Config:
    """Of what is pretrained: the checkpoint that it begins with, if that is there, else the model of params."""
    if (Path(p.pretrain.init) / "config.json").exists():
        return load_config(p.pretrain.init)
    vocabulary = scaling.GPT2_VOCABULARY if p.tokenize.tokenizer == "gpt2" else p.tokenize.vocab_size
    return Config(vocab_size=vocabulary, **p.model.dimensions())


def _base_files(p: Params) -> Path:
    """config.json of what is finetuned, or of a checkpoint that is not fetched yet, the file that presets/ has of it.

    Raises:
        UserError: there is neither.
    """
    here = Path(p.finetune.base) / "config.json"
    known = preset.FOLDER / "shapes" / f"{here.parent.name}.json"
    for path in (here, known):
        if path.exists():
            return path
    raise UserError(
        f"finetune.base: {here} is not there, so size and memory of the run are not known. Where it is one of "
        f"params.yaml's checkpoints, `dvc repro checkpoint@{here.parent.name}` fetches it."
    )


def _base_config(p: Params) -> Config:
    """Of what is finetuned."""
    if p.finetune.base == params.BASE:
        return _config(p)
    path = _base_files(p)
    return Config.from_json(read_json(path), str(path))


def _stored(p: Params) -> str:
    """The type in which the base's weights lie in its files, and in memory while an adapter is trained."""
    if p.finetune.base == params.BASE:
        return "float32"
    values = read_json(_base_files(p))
    return str(values.get("dtype") or values.get("torch_dtype") or "float32")


def _mixture_tokens(p: Params) -> tuple[int, str]:
    """Training tokens of one epoch of the mixture, and where the number comes from."""
    path = Path("metrics/mix.json")
    if path.exists() and Path("data/mix").exists():
        tasks = read_json(path)["tasks"].values()
        tokens = sum(task["train"] * (task["mean_prompt_tokens"] + task["mean_response_tokens"]) for task in tasks)
        tokens += 3 * sum(task["train"] for task in tasks)  # user, assistant and end-of-text tokens
        return math.ceil(tokens), f"over about {math.ceil(tokens):,} tokens of data/mix"
    most = math.ceil(p.mix.examples * (1 + p.mix.pretrain_fraction)) * p.mix.max_tokens
    return most, f"over at most {most:,} tokens; how many is not known before mix"


def _plan(
    stage: str,
    config: Config,
    s: Training,
    steps: int,
    epochs: float | None,
    data: str,
    evaluated: int,
    adapter: int,
    quantized: bool = False,
    stored: str | None = None,
    machine: Machine | None = None,
    sharded: bool = False,
) -> Plan:
    machine = machine or this_machine(s.precision)
    where, dtype = machine.where, machine.dtype
    per_token = config.flops_per_token(s.sequence_length)
    tokens = steps * s.batch_tokens
    flops = per_token * tokens
    compiled = not quantized and hardware.compiles(s.compile, where, flops)
    utilisation, source = _utilisation(stage, where.type, machine.name, compiled)
    rows = -(-s.batch_tokens // s.sequence_length // machine.devices)
    micro = hardware.micro_batch(config, s.sequence_length, rows, where, machine.memory)
    share = 1.0
    if source.startswith("typical"):  # a measured rate counts both in already
        share = (2 / 3 if adapter else 1.0) * (4 / 3 if s.grad_checkpointing else 1.0)  # no gradient of frozen weights
    seconds = (share * flops + per_token / 3 * evaluated) / (machine.rate * utilisation * machine.devices)
    need = partial(
        training_memory,
        config,
        optimizer=s.optimizer,
        sequence_length=s.sequence_length,
        micro_batch=micro,
        width=dtype.itemsize,
        compiled=compiled,
        device=where.type,
        adapter=adapter,
        checkpointing=s.grad_checkpointing,
        quantized=quantized,
        stored=stored,
    )
    memory = need(shards=distributed.asked_for() if sharded else 1)
    if not machine.here and memory.peak > machine.memory and not quantized:
        memory = need(shards=machine.devices)
    optimal = (flops / (6 * scaling.TOKENS_PER_PARAMETER)) ** 0.5  # C = 6 N D with D = 20 N: arXiv:2203.15556
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return Plan(
        stage=stage,
        architecture=config.architecture,
        parameters=config.parameters() + adapter,
        embedding_parameters=embeddings,
        trained_parameters=adapter or config.parameters(),
        batch_tokens=s.batch_tokens,
        steps=steps,
        tokens=tokens,
        epochs=epochs,
        data=data,
        flops=flops,
        seconds=seconds + (hardware.COMPILE_SECONDS if compiled else 0.0),
        utilisation=utilisation,
        utilisation_from=source,
        matmul_flops_per_second=machine.rate,
        rate_from=machine.rate_from,
        device=machine.name,
        devices=machine.devices,
        dtype=str(dtype).removeprefix("torch."),
        compiled=compiled,
        micro_batch=micro,
        sequence_length=s.sequence_length,
        memory=memory,
        memory_total=machine.memory,
        processes=machine.processes,
        disk=training_disk(config, s.optimizer, adapter, stored),
        disk_free=shutil.disk_usage(root()).free if machine.here else None,
        optimal_parameters=round(optimal),
        optimal_tokens=round(scaling.TOKENS_PER_PARAMETER * optimal),
    )


def _utilisation(stage: str, kind: str, device: str, compiled: bool) -> tuple[float, str]:
    """Share of the matrix-product rate, from the last run of this stage on this device, else what is typical."""
    path = Path(f"metrics/timing/{stage}.json")
    if path.exists():
        last = read_json(path)
        if last.get("device") == device and last.get("compiled") == compiled and last.get("mfu"):
            return float(last["mfu"]), f"measured by the last run, {path}"
    return UTILISATION[("cuda" if kind == "cuda" else "cpu", compiled)], "typical; no run was measured here yet"


def size(number: float) -> str:
    """Bytes for people, decimal: 1.4 GB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}" if number < 10 * scale else f"{number / scale:,.0f} {unit}"
    return f"{number / 1e3:.0f} kB"


def duration(seconds: float) -> str:
    """Seconds for people: 45 s, 3.2 min, 5.1 h, 12.0 days."""
    for unit, scale in (("days", 172800.0), ("h", 7200.0), ("min", 120.0)):
        if seconds >= scale:
            return f"{seconds / {'days': 86400, 'h': 3600, 'min': 60}[unit]:.1f} {unit}"
    return f"{seconds:.0f} s"
