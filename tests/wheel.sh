#!/usr/bin/env bash
# The wheel in an empty environment outside the checkout: the core alone plans a run, loads a model and embeds a text.
# EXTRAS=[train] installs more. usage: tests/wheel.sh [PYTHON]
set -euo pipefail
python=${1:-python3}
checkout=$(cd "$(dirname "$0")/.." && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

git -C "$checkout" ls-files -z --cached --others --exclude-standard -- ':!tests' ':!docs' |
    (cd "$checkout" && tar --null --files-from=- --create --file=- --ignore-failed-read) | (mkdir "$place/source" && tar -xf - -C "$place/source")
"$python" -m venv "$place/venv"
"$place/venv/bin/pip" install --disable-pip-version-check --quiet --constraint "$checkout/constraints.txt" build
"$place/venv/bin/python" -m build --wheel --outdir "$place/dist" "$place/source" > "$place/build.log" 2>&1 || {
    tail -n 30 "$place/build.log"
    exit 1
}
rm -rf "$place/venv" "$place/source"
"$python" -m venv "$place/venv"
wheel=$(echo "$place"/dist/*.whl)
"$place/venv/bin/pip" install --disable-pip-version-check --quiet --constraint "$checkout/constraints.txt" "$wheel${EXTRAS:-}"
cp -r "${MODEL:-$checkout/tests/data/run_v0_1_0}" "$place/model"

mkdir "$place/elsewhere"
cd "$place/elsewhere"
unset PYTHONPATH
commands=$("$place/venv/bin/snps3" --help)
grep --quiet '^  pretrain ' <<< "$commands"
status=0
plan=$("$place/venv/bin/snps3" pretrain tiny --dry-run) || status=$?
echo "$plan"
[ "$status" = 1 ] # the corpus is not there, and that is all
grep --quiet 'M parameters' <<< "$plan"
grep --quiet '^problems   1$' <<< "$plan"
grep --quiet 'data.manifest: .* does not exist' <<< "$plan"
"$place/venv/bin/python" - "$place/model" << 'PYTHON'
import sys

from snps3 import load

for model in (sys.argv[1], "snps3-tiny"):
    vectors = load(model).embed_texts(["a red ring rises"]).vectors
    assert abs(vectors.norm(dim=-1).max().item() - 1) < 1e-5, vectors
missing = {"ray", "mlflow", "matplotlib"} & sys.modules.keys()
assert not missing, f"the core imports {missing}"
print(f"loaded two models and embedded a text: {tuple(vectors.shape)}")
PYTHON
