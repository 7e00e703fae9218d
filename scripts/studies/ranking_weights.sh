#!/usr/bin/env bash
# Data and weights for scripts/studies/ranking.yaml at small size: synthetic images, a model for a CPU, a few steps.
#
#   bash scripts/studies/ranking_weights.sh FOLDER
#
# The paper's two stages, with OCT scans in the place of ImageNet: images of another kind, of which there are labels.
# STEPS, BATCH and SIDE (of the input, in pixels) may be set in the environment.
set -euo pipefail
scripts=$(cd "$(dirname "$0")/.." && pwd)
out=${1:?give the folder to make}
steps=${STEPS:-30} batch=${BATCH:-8} side=${SIDE:-112}
mkdir -p "$out"
cp "$scripts/studies/ranking.yaml" "$out"
cd "$out"

pretrain() { # OUTPUT OBJECTIVE SHARDS MODALITY START...
    local output=$1 objective=$2 shards=$3 modality=$4 few=()
    shift 4
    case $objective in swav | dino) few=(--num_prototypes 64 --local_crops 2) ;; esac
    python "$scripts/pretrain.py" "$@" --objective "$objective" --train_data "$shards" --modality "$modality" \
        --output_dir "$output" --max_steps "$steps" --per_device_train_batch_size "$batch" --save_steps 0 \
        --preview_steps 0 --dataloader_num_workers 0 "${few[@]}" --resume_from_checkpoint latest
}

made() { [ -e "$1/run.json" ] || [ -e "$1/metadata.csv" ]; }

made oct || python "$scripts/make_synthetic.py" oct --modality oct --num_patients 40
made cfp || python "$scripts/make_synthetic.py" cfp --modality cfp --num_patients 60
made cfp-unlabelled || python "$scripts/make_synthetic.py" cfp-unlabelled --modality cfp --num_patients 40 --seed 1
python "$scripts/prepare_images.py" oct oct-shards --modality oct
python "$scripts/prepare_images.py" cfp-unlabelled cfp-shards --modality cfp

made sl-imagenet || python "$scripts/finetune.py" --config_name retfound-tiny --image_size "$side" --data oct \
    --output_dir sl-imagenet --max_steps "$steps" --per_device_train_batch_size "$batch" --dataloader_num_workers 0
for objective in mae simclr swav dino moco_v3; do
    made "first-$objective" ||
        pretrain "first-$objective" "$objective" oct-shards oct --config_name retfound-tiny --image_size "$side"
    made "$objective" || pretrain "$objective" "$objective" cfp-shards cfp --model_name_or_path "first-$objective"
done
made ssl-retinal ||
    pretrain ssl-retinal mae cfp-shards cfp --config_name retfound-tiny --image_size "$side"
