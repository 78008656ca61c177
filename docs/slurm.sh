#!/bin/bash
# Pretraining on several machines of a Slurm cluster: sbatch docs/slurm.sh, in a checkout that all of them see.
# Machines that Slurm takes away are asked with SIGTERM first: the step is saved, the job queued again, and continued.
#SBATCH --job-name=llm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail

export PATH="$PWD/.venv/bin:$PATH" DVC_ROOT="$PWD"
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts%%$'\n'*}
port=$((20000 + SLURM_JOB_ID % 20000))

dvc repro tokenize
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${PROCESSES:-gpu}" --max-restarts 3 \
  --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" --rdzv-backend c10d --rdzv-endpoint "$head:$port" \
  -m stages.pretrain
dvc commit --force pretrain  # what was trained above is what `dvc repro` would have made
