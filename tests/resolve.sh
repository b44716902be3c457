#!/usr/bin/env bash
# Does the package index have wheels of the core for other machines and Pythons? One line each. usage: resolve.sh [PYTHON]
set -uo pipefail
python=${1:-python3}
checkout=$(cd "$(dirname "$0")/.." && pwd)
failed=0
mapfile -t core < <("$python" -c '
import sys, tomllib
print(*tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"], sep="\n")' "$checkout/pyproject.toml")

# pip reads `platform_system == "Linux"` and the like of the machine it runs on, whatever --platform says
pip='
import os, sys
from pip._internal.cli.main import main
from pip._vendor.packaging import markers
system, sys_platform, machine, version = os.environ["TARGET"].split()
target = {"platform_system": system, "sys_platform": sys_platform, "platform_machine": machine,
          "python_version": version, "python_full_version": f"{version}.0"}
here = markers.default_environment()
markers.default_environment = lambda: here | target
sys.exit(main(sys.argv[1:]))'

resolves() { # resolves VERSION SYSTEM SYS_PLATFORM MACHINE TAG …
    local version=$1 target="$2 $3 $4 $1" machine="$2 $4" said tags=()
    shift 4
    for tag in "$@"; do tags+=(--platform "$tag"); done
    if said=$(TARGET=$target "$python" -c "$pip" install --disable-pip-version-check --dry-run --quiet \
        --only-binary :all: "${tags[@]}" --python-version "$version" --target "${TMPDIR:-/tmp}/none" "${core[@]}" 2>&1); then
        echo "Python $version on $machine: resolves"
    else
        failed=1
        echo "Python $version on $machine: $(grep ERROR <<< "$said" | tail -n 1)"
    fi
}
for version in 3.11 3.14; do
    for machine in x86_64 aarch64; do
        resolves "$version" Linux linux "$machine" manylinux_2_{28,27,26,24,17}_"$machine" "manylinux2014_$machine"
    done
    resolves "$version" Darwin darwin arm64 macosx_14_0_arm64
done
exit "$failed"
