"""`image` of `python jobs/benchmark.py`: the lines of `cluster/Dockerfile` without Docker, and training steps in it.

They run in a chroot on an overlay over the root of a Debian, whose own files stay unchanged, with its Python in
/usr/local, as in Python's images. A run may use files of the Debian that the Dockerfile's image lacks; this benchmark
does not detect that.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs import ROOT
from jobs.benchmarks.support.hosts import missing

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MOUNTED = """
mkdir "$1/changes" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/changes,workdir=$1/work" "$1/root"
mount --rbind /dev "$1/root/dev"
mount -t proc proc "$1/root/proc"  # of the new processes: Ray looks itself up by its own id
mount -t tmpfs tmpfs "$1/root/tmp"
mount -t tmpfs tmpfs "$1/root/root"
root=$1/root
shift 2
"""
"""Script, in namespaces of mounts and processes, that mounts the chroot of the Debian $2 in the folder $1."""
BASE = "apt-get update -qq && apt-get install -qq --yes python3-venv && python3 -m venv /usr/local"
BASE += ' && if id 1000 > /dev/null 2>&1; then userdel "$(id -nu 1000)"; fi'
"""Script that makes a Debian look like an image of Python."""
CORPUS = "--out corpus --num-train-videos 40 --num-train-images 8 --num-val 8 --num-test 12 --num-temporal-groups 3"
SMALL = "--data.num-frames 2 --data.frame-size-px 32 --optim.global-batch 8 --optim.warmup-steps 2"
RUN = f"""
snps3 make-corpus {CORPUS}
snps3 prepare --corpus small --root corpus --annotations corpus/annotations/* --out manifest
set -- tiny --name image --data.manifest manifest/manifest.parquet {SMALL} "$@"
snps3 pretrain "$@" --dry-run
snps3 pretrain "$@"
python -c 'import json; print(json.dumps(json.load(open("runs/image/results.json"))))'
"""
"""Script that runs in the image, with options of `pretrain`."""


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile as (keyword, argument)."""
    lines = re.sub(r"\\\n", "", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines) if word]


def allowed(text: str) -> list[str]:
    """Return the names that a .dockerignore of "all but these" lets into an image."""
    return [line.removeprefix("!") for line in text.splitlines() if line.startswith("!")]


def built(dockerfile: str, context: Path, variables: Mapping[str, str]) -> Iterator[str]:
    """Yield shell commands that build the image in `$root`; the last one runs "$@" in it.

    `variables`: environment of each command, like build arguments.
    """
    known, user, folder = {"PATH": PATH, "HOME": "/root", **variables}, "0", "/"
    names = " ".join(shlex.quote(str(context / name)) for name in allowed((context / ".dockerignore").read_text()))

    def inside(command: str) -> str:
        values = shlex.join(f"{name}={value}" for name, value in known.items())
        chroot = f'chroot --userspec={user}:{user} "$root" env -i {values} env --chdir={folder}'
        return f"{chroot} {command}"

    for word, about in instructions(dockerfile):
        match word:
            case "RUN":
                yield inside(f"sh -ec {shlex.quote(about)}")
            case "COPY":
                *files, target = about.split()
                copied = names if files == ["."] else " ".join(shlex.quote(str(context / name)) for name in files)
                yield f'mkdir -p "$root{target}"; cp -r {copied} "$root{target}"'
            case "ENV" | "ARG":
                known |= dict(part.split("=", 1) for part in shlex.split(about)) | dict(variables)
            case "WORKDIR":
                folder = about
                yield f'mkdir -p "$root{folder}"'
            case "USER":
                user = about
    yield inside('"$@"')


def in_image(
    dockerfile: str, context: Path, command: Sequence[str], *, base: str = "/", variables: Mapping[str, str]
) -> list[str]:
    """Run the instructions and then a command; return the printed lines. Raise RuntimeError with the last ones on a
    failure.

    `context`: folder of the build context. `base`: root of the underlying Debian.
    """
    script = "\n".join([MOUNTED, *built(dockerfile, context, variables)])
    shell = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-ec", script]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        arguments = [*shell, "image", folder, base, *command]
        status = subprocess.run(arguments, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        log.seek(0)
        lines = log.read().splitlines()
    if status:
        raise RuntimeError(f"a line of the image failed with {status}: " + "\n".join(lines[-30:]))
    return lines


def image(num_steps: int = 20, base: str = "/", variables: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the seconds of building the image and of a run in it, and the run's results. Needs root on a Debian;
    raises ValueError otherwise.

    `base`: root of the underlying Debian. `variables`: NAME=VALUE, environment of each command.
    """
    if reason := missing():
        raise ValueError(reason)
    start, named = time.perf_counter(), dict(variable.split("=", 1) for variable in variables)
    dockerfile = f"RUN {BASE}\n" + (ROOT / "cluster" / "Dockerfile").read_text()
    command = ["sh", "-exc", RUN, "run", "--optim.num-steps", str(num_steps)]
    said = in_image(dockerfile, ROOT, command, base=base, variables=named)
    return {"seconds": time.perf_counter() - start, "results": json.loads(said[-1])}
