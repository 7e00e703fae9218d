#!/bin/bash
# Everything that needs a GPU, within ten minutes and without a network: bash scripts/benchmarks/gpu.sh [OUTPUT_DIR]
#
# Each step of gpu.py has its own limit in seconds, and appends to OUTPUT_DIR/results.jsonl as it goes: one that is cut
# off, or fails, takes nothing from the others. STEPS="mae embed" runs some. WHEELS is a folder of wheels for what the
# machine lacks (datasets, evaluate, and what they need); without them the steps that read shards say so and end.
# TOY=1 runs all at toy size on a CPU.
cd "$(dirname "$0")/../.." || exit 1
out=$(realpath -m "${1:-gpu-results}")
mkdir -p "$out"
python=${PYTHON:-python3}
if [ -d "${WHEELS:-}" ]; then
    "$python" -m pip install -q --no-index --no-deps --upgrade --target "$out/site" "$WHEELS"/*.whl
fi
export PYTHONPATH="$PWD:$out/site:$PYTHONPATH" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TQDM_DISABLE=1
export TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=passive
for pair in correct:90 mae:120 finetune:90 loop:110 embed:45 objectives:75 maps:30; do
    step=${pair%%:*}
    [[ " ${STEPS:-$step} " == *" $step "* ]] || continue
    echo "== $step" >&2
    timeout "${pair##*:}" "$python" scripts/benchmarks/gpu.py "$step" --output_dir "$out" 2> "$out/$step.log"
    code=$?
    [ $code = 0 ] || { echo "$step: ended with $code"; tail -n 3 "$out/$step.log" | cut -c1-500; } >&2
done
