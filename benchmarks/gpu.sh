#!/usr/bin/env bash
# Measure everything on a machine with an NVIDIA GPU:  benchmarks/gpu.sh DATA [RUNS]
#
# DATA is a data set of train.prepare with frames of 480x640, RUNS a folder for the trainings (default: runs). Needs
# make setup, or pip install -e '.[dev,gpu]'. Every command has 8 minutes: after 7 it gets SIGINT, after 8 SIGKILL. Rows are
# stored as they are measured, so running the script again continues: stored rows are skipped, trainings resume. To
# run a part, run its lines by hand.
set -uo pipefail
cd "$(dirname "$0")/.."
data=${1:?usage: benchmarks/gpu.sh DATA [RUNS]}
runs=${2:-runs}
python=${PYTHON:-.venv/bin/python}
models="unet_resnet50 unet_mobilenet_v3 unet unet_bilinear dispnet_vgg16 unet_resnet50_heavy"
peers="smp_unet_resnet50 smp_unet_mobilenet_v2 deeplabv3_resnet50 lraspp_mobilenet_v3_large depth_anything_v2_small
  dpt_swinv2_tiny glpn_nyu"

run() {
  echo "+ $*"
  timeout -s INT -k 60 420 "$python" -m "$@" || echo "gpu.sh: exit code $?: $*" >&2
}

# A training that its time limit has interrupted (exit code 124) resumes until it is done.
train() { # NAME RECIPE FLAGS...
  local name=$1 recipe=$2 code=124
  shift 2
  while [[ $code == 124 ]]; do
    local start=(--recipe "train/recipes/$recipe.toml" --data "$data" "$@")
    [[ -e $runs/$name/checkpoint.safetensors ]] && start=(--resume)
    echo "+ train $name"
    timeout -s INT -k 60 420 "$python" -m train "${start[@]}" --out "$runs/$name" --device cuda
    code=$?
    [[ -e $runs/$name/checkpoint.safetensors ]] || break # too slow to reach a checkpoint
  done
}

run torch.utils.collect_env
run pytest -q tests/test_on_gpu.py
run benchmarks.roofline --device cuda

for model in $models; do
  run benchmarks.latency --device cuda --models "$model" --sizes 192x256 480x640 --batches 1 16 --seconds 60 --skip-existing
  run benchmarks.train_speed --device cuda --models "$model" --data "$data" --skip-existing
done
for peer in $peers; do
  run benchmarks.latency --device cuda --models --peers "$peer" --batches 1 16 --seconds 60 --skip-existing
done
run benchmarks.train_speed --device cuda --models unet_mobilenet_v3 --data "$data" --loader-only --skip-existing

for model in $models; do
  train "$model" "$model"
  run train.evaluate "$runs/$model" --data "$data" --device cuda --card weights
done
train seed_unet_mse seed_unet_mse
train seed_unet_combined seed_unet_combined --init "$runs/seed_unet_mse/model.safetensors"
for name in seed_unet_mse seed_unet_combined; do
  run train.evaluate "$runs/$name" --data "$data" --device cuda --card weights
done
run benchmarks.accuracy --data "$data"

for seed in 0 1 2; do
  for row in mse mse_longer combined bounded bilinear resnet50 berhu dispnet; do
    run train.reproduction --data "$data" --runs "$runs/reproduction" --rows "$row" --seeds "$seed" --device cuda
  done
done

run benchmarks.report
