#!/bin/sh
# Repairs the demo's pair in three ways and evaluates all five models; interrupted, it goes on where it stopped.
#   sh docs/gallery/evaluations/make.sh BASE FINETUNED DATA WORK
# BASE and FINETUNED are the demo's folders, DATA holds the items (docs/evaluate.md), WORK takes the repaired models.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
base=$(realpath "$1") finetuned=$(realpath "$2") data=$(realpath "$3")
mkdir -p "$4" && cd "$4"
ln -sfn "$base" base
ln -sfn "$finetuned" finetuned
deltamend repair base finetuned wise-ft --resume --method wise-ft
deltamend repair base finetuned dg-hard --resume --method dg-hard
deltamend repair base finetuned magnitude --resume --method magnitude --set density=0.15
for model in base finetuned wise-ft dg-hard magnitude; do
    deltamend evaluate $model --suite "$here/suite.yaml:$data" --limit 100 --device cpu --dtype float32 --resume --out "$here/$model.json.gz"
done
