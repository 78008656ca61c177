"""The plans of pretraining and finetuning, from params and from data and models that exist."""

from __future__ import annotations

import math
import shutil
from functools import partial
from pathlib import Path

from llm import params
from llm.errors import UserError
from llm.model.config import Config
from llm.model.hf_files import load_config
from llm.parallel import hardware, processes
from llm.params import Params, Training, depth, presets
from llm.plan.gpus import Machine, this_machine
from llm.plan.plan import Plan
from llm.runtime.io import read_json
from llm.runtime.state_dirs import repository
from llm.train import fsdp
from llm.train.adapter_size import NO_ADAPTER, AdapterSize, adapter_size
from llm.train.memory import training_disk, training_memory
from llm.train.micro_batch import default_micro_batch

# Share of the measured matrix-product rate that training reaches where no earlier run measured it. CPU:
# docs/LOG.md, "When compiling pays". CUDA: 38 to 43 % of the peak on H100s (Llama 3,
# arXiv:2407.21783, table 4).
UTILISATION = {("cpu", True): 0.5, ("cpu", False): 0.3, ("cuda", True): 0.4, ("cuda", False): 0.3}
# epochs until repeated text is worth less than new text (Muennighoff et al. 2023, arXiv:2305.16264)
REPEATS = 4


def pretrain_plan(p: Params, config: Config | None = None, machine: Machine | None = None) -> Plan:
    """Return the plan of pretraining.

    Args:
        config: of an existing model, whose vocabulary may be smaller than params ask for.
        machine: to plan for, instead of this one.
    """
    s, config = p.pretrain, config or pretrain_config(p)
    meta = Path("data/tokens/meta.json")
    epochs, data = None, "not known before tokenize"
    if meta.exists():
        available = int(read_json(meta)["train"]["tokens"])
        epochs = s.steps * s.batch_tokens / available
        repeated = f"; more than {REPEATS} repeat more than they teach" if epochs > REPEATS else ""
        data = f"over the {available:,} training tokens of data/tokens{repeated}"
    evaluated = s.eval_tokens * ((s.steps - 1) // s.eval_every)
    sharded = machine is None and fsdp.wanted(config, s)
    return _plan(
        "pretrain",
        config,
        s,
        s.steps,
        epochs,
        data,
        evaluated,
        NO_ADAPTER,
        machine=machine,
        sharded=sharded,
    )


def finetune_plan(
    p: Params,
    config: Config | None = None,
    steps: int | None = None,
    machine: Machine | None = None,
) -> Plan:
    """Return the plan of finetuning.

    Args:
        config: of an existing model.
        steps: where the examples are packed already, else estimated.
        machine: to plan for, instead of this one.
    """
    s, config = p.finetune, config or _base_config(p)
    if steps is None:
        tokens, data = _mixture_tokens(p)
        steps = max(1, math.ceil(s.epochs * tokens / s.batch_tokens))
    else:
        data = "over data/mix"
    adapter = adapter_size(config, s)
    evaluated = s.eval_tokens * ((steps - 1) // s.eval_every + 1)
    stored = None if s.method == "full" else _stored(p)
    quantized = s.method == "qlora"
    sharded = machine is None and s.method in ("full", "lora") and fsdp.wanted(config, s, adapter)
    return _plan(
        "finetune",
        config,
        s,
        steps,
        s.epochs,
        data,
        evaluated,
        adapter,
        quantized,
        stored,
        machine,
        sharded,
    )


def before_training(plan: Plan, state: Path) -> None:
    """Print the plan and raise UserError if the run does not fit; `state` holds its checkpoints."""
    print("\n".join(plan.summary()), flush=True)
    plan.check(kept=sum(path.stat().st_size for path in state.glob("step-*/*")))


def pretrain_config(p: Params) -> Config:
    """Return the config of the checkpoint that pretraining starts from, else of params' model."""
    if (Path(p.pretrain.init) / "config.json").exists():
        return load_config(p.pretrain.init)
    vocabulary = depth.GPT2_VOCABULARY if p.tokenize.tokenizer == "gpt2" else p.tokenize.vocab_size
    return Config(vocab_size=vocabulary, **p.model.dimensions())


def _base_files(p: Params) -> Path:
    """Return config.json of the base model, or the copy in presets/ before it is fetched.

    Raises:
        UserError: neither exists.
    """
    config_file = Path(p.finetune.base) / "config.json"
    preset = presets.FOLDER / "shapes" / f"{config_file.parent.name}.json"
    for path in (config_file, preset):
        if path.exists():
            return path
    raise UserError(
        f"finetune.base: {config_file} is not there, so size and memory of the run are not known. Where it is one of "
        f"params.yaml's checkpoints, `dvc repro checkpoint@{config_file.parent.name}` fetches it."
    )


def _base_config(p: Params) -> Config:
    """Return the config of the base model that is finetuned."""
    if p.finetune.base == params.BASE:
        return pretrain_config(p)
    path = _base_files(p)
    return Config.from_json(read_json(path), str(path))


def _stored(p: Params) -> str:
    """Return the base weights' dtype in its files, and in memory while an adapter trains."""
    if p.finetune.base == params.BASE:
        return "float32"
    values = read_json(_base_files(p))
    return str(values.get("dtype") or values.get("torch_dtype") or "float32")


def _mixture_tokens(p: Params) -> tuple[int, str]:
    """Return the training tokens of one epoch of the mixture, and the source of the number."""
    path = Path("metrics/mix.json")
    if path.exists() and Path("data/mix").exists():
        tasks = read_json(path)["tasks"].values()
        tokens = sum(
            task["train"] * (task["mean_prompt_tokens"] + task["mean_response_tokens"])
            for task in tasks
        )
        tokens += 3 * sum(task["train"] for task in tasks)  # user, assistant and end-of-text tokens
        return math.ceil(tokens), f"over about {math.ceil(tokens):,} tokens of data/mix"
    limit = math.ceil(p.mix.examples * (1 + p.mix.pretrain_fraction)) * p.mix.max_tokens
    return limit, f"over at limit {limit:,} tokens; how many is not known before mix"


def _plan(
    stage: str,
    config: Config,
    s: Training,
    steps: int,
    epochs: float | None,
    data: str,
    evaluated: int,
    adapter: AdapterSize,
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
    micro = default_micro_batch(config, s.sequence_length, rows, where, machine.memory)
    share = 1.0
    if source.startswith("typical"):  # a measured rate counts both in already
        share = (2 / 3 if adapter.parameters else 1.0) * (
            4 / 3 if s.grad_checkpointing else 1.0
        )  # no gradient of frozen weights
    seconds = (share * flops + per_token / 3 * evaluated) / (
        machine.rate * utilisation * machine.devices
    )
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
    memory = need(shards=processes.launched_world_size() if sharded else 1)
    if not machine.here and memory.peak > machine.memory and not quantized:
        memory = need(shards=machine.devices)
    optimal = (
        flops / (6 * depth.TOKENS_PER_PARAMETER)
    ) ** 0.5  # C = 6 N D with D = 20 N: arXiv:2203.15556
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return Plan(
        stage=stage,
        architecture=config.architecture,
        parameters=config.parameters() + adapter.parameters,
        embedding_parameters=embeddings,
        trained_parameters=adapter.parameters or config.parameters(),
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
        disk_free=shutil.disk_usage(repository()).free if machine.here else None,
        optimal_parameters=round(optimal),
        optimal_tokens=round(depth.TOKENS_PER_PARAMETER * optimal),
    )


def _utilisation(stage: str, kind: str, device_name: str, compiled: bool) -> tuple[float, str]:
    """Return the share of the matrix-product rate that training reaches, and its source.

    Measured by the last run of this stage on this device, else typical.
    """
    path = Path(f"metrics/timing/{stage}.json")
    if path.exists():
        last = read_json(path)
        if (
            last.get("device") == device_name
            and last.get("compiled") == compiled
            and last.get("mfu")
        ):
            return float(last["mfu"]), f"measured by the last run, {path}"
    return UTILISATION[
        ("cuda" if kind == "cuda" else "cpu", compiled)
    ], "typical; no run was measured here yet"
