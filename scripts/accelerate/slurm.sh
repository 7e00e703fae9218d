#!/bin/bash
#SBATCH --job-name=retfound-pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@900
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=pretrain-%j.log
# Pretraining on several nodes with SLURM, with an output folder that all of them see:
#     sbatch scripts/accelerate/slurm.sh --config_name retfound-cfp --train_data my-shards --output_dir my-retfound --bf16
# Options of sbatch come before the file and replace those above, such as --nodes=4 or --account=eyes.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600 # torchrun kills processes that take longer over their last checkpoint
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # else a node that is started again is not told where the others are

# SLURM sends USR1 here a quarter of an hour before the time limit: the run writes a checkpoint, and the job goes back
# into the queue. A job that lost a node comes back by --requeue. Both go on from the latest checkpoint.
trap 'stopped=1; kill -TERM "$step"' USR1
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" --max-restarts=3 \
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$first:$((20000 + SLURM_JOB_ID % 20000))" \
    scripts/pretrain.py "$@" --resume_from_checkpoint latest &
step=$!
wait "$step"
status=$?
[ -z "$stopped" ] && exit "$status"
wait "$step"
scontrol requeue "$SLURM_JOB_ID"
