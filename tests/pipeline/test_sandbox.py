"""A stranger's file reaches nothing: a listening server, a private file and strace are the witnesses."""

from __future__ import annotations

import ast
import io
import platform
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import av.error
import numpy as np
import pytest
from misbehaviour import reach

import pipeline
from pipeline.decode import decoders
from pipeline.decode.codec import decode_frames, encode_video
from pipeline.decode.config import Limits
from pipeline.decode.isolation import isolated, reachable_from_sandbox
from pipeline.decode.sandbox import reachable_resources
from pipeline.records import DecodeError, Kind

LIMITS = Limits(seconds=60.0)
VIDEO = encode_video(np.full((12, 48, 64, 3), 255, np.uint8), fps=6)


class Server:
    """Counts who connects."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port, self.num_asked = self._socket.getsockname()[1], 0
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.num_asked += 1  # before the other side notices
            connection.close()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def stream() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as output, av.open(io.BytesIO(VIDEO), "r") as source:
        copy = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                output.mux(packet)
    return buffer.getvalue()


def hostile(where: str) -> dict[str, bytes]:
    """Files that name `where`, an address or a path."""
    playlist = (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1,\n{where}\n#EXT-X-ENDLIST\n".encode()
    )
    concat = f"ffconcat version 1.0\nfile {where}\n".encode()
    sdp = f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns={where}\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n".encode()
    ts = stream()
    return {
        "a playlist": playlist,
        "a playlist before a stream": playlist + ts,
        "a playlist in a packet": playlist.ljust(188, b"\n") + ts,
        "a playlist behind a tag": b"ID3\x03\0\0\0\0\0\0" + playlist + ts,
        "ffconcat": concat,
        "ffconcat before a stream": concat.ljust(188, b"\n") + ts,
        "a session": sdp,
        "a session in a stream": ts[:4] + b"\n" + sdp + ts[5 + len(sdp) :],
        "a manifest": f'<MPD type="static" profiles="urn:mpeg:dash:profile:isoff-live:2011"><BaseURL>{where}'.encode(),
        "a redirector": f"[Reference]\r\nRef1={where}\r\n".encode(),
        "an EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    }


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("decoder", decoders.loadable())
def test_no_file_makes_a_decoder_ask_a_server_or_show_another_file(
    decoder, kind, server, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret.mp4").write_bytes(VIDEO)
    for where in (f"http://127.0.0.1:{server.port}/latest/meta-data", "secret.mp4", f"{tmp_path}/secret.mp4"):
        for name, data in hostile(where).items():
            settings = {"kind": kind, "num_frames": 2, "size_px": 32, "decoder": decoder}
            with pytest.raises(DecodeError, match="the file "):
                print(name, decode_frames(data, **settings).mean())
            with pytest.raises(DecodeError, match="the file "):
                isolated(decode_frames, data, limits=LIMITS, **settings)
    assert server.num_asked == 0


def test_the_baits_work(server, tmp_path, monkeypatch) -> None:
    """Without an allow-list, FFmpeg shows the other file; and the server counts."""
    monkeypatch.chdir(tmp_path)
    Path("secret.mp4").write_bytes(VIDEO)
    with av.open(io.BytesIO(hostile("secret.mp4")["ffconcat"]), "r") as container:
        assert next(container.decode(video=0)).to_ndarray(format="rgb24").mean() > 250
    with pytest.raises(av.error.FFmpegError):
        av.open(f"http://127.0.0.1:{server.port}/latest", timeout=5).close()
    assert server.num_asked >= 1


def test_a_decode_process_reaches_nothing(server, tmp_path, monkeypatch) -> None:
    if not _guards_here():
        pytest.skip(f"Linux {platform.release()} on {platform.machine()} has no Landlock or no seccomp")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # the attempts write to the working directory, too
    (tmp_path / "secret").write_text("private")
    data = f"{server.port} {tmp_path}".encode()
    before = reach(data)
    assert {"network", "a program", "a file", "writing", "removing", "a folder"} <= set(before)  # so the attempts work
    (tmp_path / "secret").write_text("private")
    num_asked = server.num_asked
    assert isolated(reach, data, limits=LIMITS) == {}
    assert reachable_from_sandbox(LIMITS) == []
    assert server.num_asked == num_asked
    assert (tmp_path / "secret").read_text() == "private"
    assert set(reachable_resources()) == {"network", "programs", "files"}  # here, nothing is kept out


def _guards_here() -> bool:
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        return False
    import ctypes

    return ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) >= 1


def test_keys_and_tokens_stay_outside(monkeypatch, tmp_path) -> None:
    """In a worker of its own: the variables of a fork server are those at its start."""
    code = (
        "import os; os.environ |= {'AWS_SECRET_ACCESS_KEY': 'x', 'RAY_AUTH_TOKEN': 'y'}\n"
        "from misbehaviour import reach\nfrom pipeline.decode.config import Limits\n"
        "from pipeline.decode.isolation import isolated\n"
        f"print(sorted(isolated(reach, b'1 {tmp_path}', limits=Limits())))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment(), check=True)
    assert not {"a key", "a token", "the working directory"} & set(ast.literal_eval(said.stdout))


def _environment() -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed, which is the witness")
def test_strace_sees_no_file_no_connection_and_no_program(server, tmp_path) -> None:
    (tmp_path / "secret.mp4").write_bytes(VIDEO)
    for where in (f"http://127.0.0.1:{server.port}/latest", str(tmp_path / "secret.mp4"), "secret.mp4"):
        for number, data in enumerate(hostile(where).values()):
            (tmp_path / f"{where.count('/')}-{number}.bin").write_bytes(data)
    code = (
        "import sys, pathlib\nfrom pipeline.decode.codec import decode_frames\nfrom pipeline.decode import decoders\n"
        "from pipeline.records import DecodeError, Kind\n"
        "decoders.load('auto')\nfiles = [p.read_bytes() for p in sorted(pathlib.Path('.').glob('*.bin'))]\n"
        "import PIL.Image; PIL.Image.init()\npathlib.Path('/begin-of-decoding').exists()\n"
        "for data in files:\n    for kind in Kind:\n        for decoder in decoders.loadable():\n"
        "            try:\n                decode_frames(data, kind=kind, num_frames=2, size_px=32, decoder=decoder)\n"
        "            except DecodeError:\n                continue\n            sys.exit('it decodes')\n"
    )
    log = tmp_path / "strace.log"
    calls = "trace=open,openat,connect,execve,stat,newfstatat"
    traced = ["strace", "-f", "-q", "-e", calls, "-o", str(log), sys.executable, "-c", code]
    done = subprocess.run(traced, cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    _, seen, while_decoding = log.read_text().partition("/begin-of-decoding")
    assert seen
    assert "secret" not in while_decoding
    assert "connect(" not in while_decoding
    assert "execve(" not in while_decoding
    assert server.num_asked == 0


def test_strangers_files_are_opened_in_decode_processes_alone() -> None:
    """Outside `pipeline/decode`, functions that open a file are handed to `isolated`, never called."""
    root = Path(pipeline.__file__).parents[1]
    files = [path for folder in ("pipeline", "jobs", "snps3") for path in (root / folder).rglob("*.py")]
    calls = re.compile(r"(?<!def )\b(open_video|decode_image|decode_frames|decode_clip|probe|clip_thumbnails)\(")
    found = {str(path.relative_to(root)) for path in files if calls.search(path.read_text())}
    found -= {name for name in found if name.startswith(("pipeline/decode/", "jobs/benchmarks/"))}
    assert found == {"pipeline/dedup/fingerprints.py"}  # in `clip_thumbnails`, which is handed over
