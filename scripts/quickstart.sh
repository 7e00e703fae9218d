#!/usr/bin/env bash
# Set up, then the whole way on synthetic images, on a CPU, offline: data, classifier, evaluation, features, pictures.
#
#     bash scripts/quickstart.sh [OUTPUT_FOLDER]
set -euo pipefail
here=$(pwd)
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""
out=$(cd "$here" && realpath -m "${1:-quickstart_output}")
[ ! -e "$out" ] || { echo "error: $out exists; remove it or give another folder" >&2; exit 2; }
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}" OMP_WAIT_POLICY=passive
started=$SECONDS

echo "1/6 A synthetic labelled set of colour fundus photographs, split by patient"
retfound --quiet make_synthetic "$out/data" --modality cfp --stage advanced --camera handheld --num_patients "${NUM_PATIENTS:-200}"

echo "2/6 A classifier: linear head on the features of retfound-mini, small weights that come with the package"
retfound --quiet finetune --model_name_or_path retfound-mini --method linear --data "$out/data" --output_dir "$out/classifier" \
    --cache_dir "$out/cache" --seed 0

echo "3/6 The finished folder on the test split, as on any other labelled set, and 4/6 feature vectors"
retfound --quiet evaluate --model_name_or_path "$out/classifier" --data "$out/data" --output_dir "$out/evaluation" \
    --cache_dir "$out/cache" > /dev/null &
retfound --quiet embed --model_name_or_path "$out/classifier" --data "$out/data/test" --output_dir "$out/features" > /dev/null
wait $!

echo "5/6 Relevance maps of images with retinopathy, and 6/6 the same images, three quarters hidden and reconstructed"
images="$out/data/test/retinopathy"
retfound --quiet explain --model_name_or_path "$out/classifier" --data "$images" --target retinopathy --max_images 4 \
    --output_dir "$out/maps" > /dev/null &
retfound --quiet explain --model_name_or_path retfound-mini --method reconstruction --data "$images" --max_images 4 \
    --output_dir "$out/reconstructions" > /dev/null
wait $!
python scripts/quickstart_page.py "$out"

cat <<END

Done in $((SECONDS - started)) s. Open
  $out/index.html                     figures, curves, relevance maps and reconstructions on one page
  $out/classifier/report.html         the full report, with metrics.json, predictions.csv and plots/ beside it
Look at
  $out/classifier                     a model folder for AutoModelForImageClassification and pipeline
  $out/evaluation                     the same metrics, from the finished folder
  $out/features/features.parquet      one feature vector per test image

Your own images, with the official weights (gated: ask for access on their page, then: hf auth login):
  source .venv/bin/activate
  python scripts/convert_checkpoint.py YukunZhou/RETFound_mae_natureCFP retfound-cfp
  python scripts/finetune.py --model_name_or_path retfound-cfp --data YOUR_IMAGES --output_dir my-classifier
YOUR_IMAGES is a folder {train,val,test}/<class>/, or a CSV with the columns image, label and patient_id.
On a GPU add --fp16 (T4) or --bf16 (Ampere and later). Without one use --method linear.
What this machine has and lacks: python scripts/doctor.py
END
