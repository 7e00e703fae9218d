#!/usr/bin/env bash
# Set up, then the whole way on synthetic images, on a CPU, offline: data, classifier, evaluation, features, report.
#
#     bash scripts/quickstart.sh [OUTPUT_FOLDER]
set -euo pipefail
here=$(pwd)
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""
out=$(cd "$here" && realpath -m "${1:-quickstart_output}")
[ ! -e "$out" ] || { echo "error: $out exists; remove it or give another folder" >&2; exit 2; }
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}"
started=$SECONDS

echo "1/4 A synthetic labelled set of colour fundus photographs, split by patient"
python scripts/make_synthetic.py "$out/data" --modality cfp --num_patients "${NUM_PATIENTS:-300}" --image_size 256

echo "2/4 A classifier: linear head on the features of a small encoder (untrained: no weights are fetched here)"
python scripts/finetune.py --config_name retfound-tiny --method linear --data "$out/data" \
    --output_dir "$out/classifier" --cache_dir "$out/cache" --seed 0

echo "3/4 The finished folder on the test split, as on any other labelled set"
python scripts/evaluate.py --model_name_or_path "$out/classifier" --data "$out/data" --split test \
    --output_dir "$out/evaluation" --cache_dir "$out/cache" > /dev/null

echo "4/4 Feature vectors of the test images"
python scripts/embed.py --model_name_or_path "$out/classifier" --data "$out/data/test" --output_dir "$out/features"

cat <<END

Done in $((SECONDS - started)) s. Look at:
  $out/classifier/metrics.json        the table above, with predictions.csv and plots/ beside it
  $out/classifier                     a model folder for AutoModelForImageClassification and pipeline
  $out/evaluation                     the same metrics, from the finished folder
  $out/features/features.parquet      one feature vector per test image

Your own images, with the official weights (gated: ask for access on their page, then: hf auth login):
  source .venv/bin/activate
  python scripts/convert_checkpoint.py YukunZhou/RETFound_mae_natureCFP retfound-cfp
  python scripts/finetune.py --model_name_or_path retfound-cfp --data YOUR_IMAGES --output_dir my-classifier
YOUR_IMAGES is a folder {train,val,test}/<class>/, or a CSV with the columns image, label and patient_id.
On a GPU add --fp16 (T4) or --bf16 (Ampere and later). Without one use --method linear.
END
