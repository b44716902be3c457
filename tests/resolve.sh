#!/usr/bin/env bash
# Does the package index have wheels of the core for other machines and Pythons? One line each. usage: resolve.sh [PYTHON]
set -uo pipefail
python=${1:-python3}
checkout=$(cd "$(dirname "$0")/.." && pwd)
failed=0
mapfile -t core < <("$python" -c '
import sys, tomllib
print(*tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"], sep="\n")' "$checkout/pyproject.toml")
for version in 3.11 3.14; do
    for platform in manylinux_2_28_x86_64 manylinux_2_28_aarch64 macosx_14_0_arm64; do
        if said=$("$python" -m pip install --disable-pip-version-check --dry-run --quiet --only-binary :all: \
            --platform "$platform" --python-version "$version" --target "${TMPDIR:-/tmp}/none" "${core[@]}" 2>&1); then
            echo "Python $version on $platform: resolves"
        else
            failed=1
            echo "Python $version on $platform: $(grep ERROR <<< "$said" | tail -n 1)"
        fi
    done
done
exit "$failed"
