"""The measurement `image`: instructions of a Dockerfile do in a chroot what Docker's builder would have them do."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.benchmarks.image import image, in_image
from jobs.benchmarks.support.hosts import missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
DOCKERFILE = r"""# not a RUN
FROM python:3.11
ARG GIVEN=
COPY given /made/
WORKDIR /made
RUN cat given > "copy$GIVEN" \
    && id -u > builder
COPY . /made
ENV HOME=/made TWO=2
USER 1000
"""


def test_the_lines_of_a_dockerfile_run_in_a_chroot_that_leaves_the_machine_as_it_is(tmp_path: Path) -> None:
    (tmp_path / ".dockerignore").write_text("*\n!given\n!folder\n")
    (tmp_path / "folder").mkdir()
    for name in ("given", "folder/inner", "ignored"):
        (tmp_path / name).write_text(f"{name}\n")
    command = ["sh", "-c", 'ls; cat copy1 builder folder/inner; id -u; echo "$TWO $HOME $PWD $1"', "sh", "asked"]
    said = in_image(DOCKERFILE, tmp_path, command, variables={"GIVEN": "1"})
    assert said == ["builder", "copy1", "folder", "given", "given", "0", "folder/inner", "1000", "2 /made /made asked"]
    assert not Path("/made").exists()


def test_a_line_that_fails_ends_the_image_with_what_it_printed(tmp_path: Path) -> None:
    (tmp_path / ".dockerignore").write_text("*\n")
    with pytest.raises(RuntimeError, match="failed with 3: first"):
        in_image("RUN echo first\nRUN exit 3\nRUN echo never\n", tmp_path, ["true"], variables={})


@pytest.mark.slow
@pytest.mark.nightly
def test_the_lines_of_the_image_make_a_place_in_which_twenty_steps_run() -> None:
    """It installs the image's packages from the index that pip is configured for, and starts a Ray in the chroot."""
    results = image(num_steps=20)["results"]
    assert results["num_steps"] == 20
    assert 0 <= results["test/t2v/r1"] <= 1
