"""What a machine needs for a run, tried out: each finding is ok, worth knowing, or bad, with how to mend it."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import httpx
import psutil
import torch
from huggingface_hub import constants, get_token
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from torch.nn.attention import SDPBackend, sdpa_kernel

from embedding.attention import NAME, kernel_runs, packed_attention

State = Literal["ok", "note", "bad"]
PINS = Path(__file__).resolve().parents[1] / "constraints.txt"
SAMPLE_BYTES = 64 << 20
SLOW_DISK = 50e6
"""Bytes a second below which writing checkpoints and vectors is felt."""
LITTLE_SPACE = 5e9
RANKS_SECONDS = 120
TOKENS = {"wandb": ("WANDB_API_KEY",), "an endpoint teacher": ("OPENAI_API_KEY",)}
"""Environment variables that a part of eyas reads a key from."""


class Finding(NamedTuple):
    """One line of the doctor."""

    state: State
    name: str
    text: str
    mend: str = ""


def examine(folder: Path) -> Iterator[Finding]:
    """Every check, one after another; `folder` is where runs and cache are to lie."""
    yield python()
    yield from versions()
    yield from devices()
    yield from attention()
    yield ranks()
    yield from disk(folder)
    yield hub()
    yield from tokens()


def python() -> Finding:
    """Python's version."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    wanted = importlib.metadata.metadata("eyas")["Requires-Python"]
    if platform.python_version() not in SpecifierSet(wanted):
        return Finding("bad", "python", found, f"eyas needs {wanted}: make a new virtual environment with it")
    return Finding("ok", "python", found)


def versions() -> Iterator[Finding]:
    """Every library eyas asks for: inside the range of pyproject.toml, and the version that was tested."""
    pins = _pins()
    for text in importlib.metadata.requires("eyas") or []:
        wanted = Requirement(text)
        if re.search(r"extra == .(dev|demo).", text):
            continue
        extra = re.search(r"extra == .(\w+).", text)
        name, pin = wanted.name, pins.get(wanted.name.casefold())
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if extra:
                yield Finding(
                    "note", name, "not installed", f"pip install 'eyas[{extra[1]}]' where you want {extra[1]}"
                )
            else:
                yield Finding("bad", name, "not installed", f"pip install '{name}{wanted.specifier}'")
            continue
        if found not in wanted.specifier:
            mend = f"outside {wanted.specifier}: pip install '{name}{wanted.specifier}'"
            yield Finding("bad", name, found, mend)
        elif pin and found.partition("+")[0] != pin:
            yield Finding("note", name, found, f"tested with {pin}; if something is odd: pip install {name}=={pin}")
        else:
            yield Finding("ok", name, found)


def _pins() -> dict[str, str]:
    """The tested versions; none where eyas was installed without its checkout."""
    if not PINS.is_file():
        return {}
    lines = PINS.read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {name.strip().casefold(): version.strip() for name, version in pairs}


def devices() -> Iterator[Finding]:
    """CPU, memory and GPUs."""
    memory = psutil.virtual_memory()
    yield Finding(
        "ok", "cpu", f"{os.cpu_count()} cores, {memory.total / 1e9:.0f} GB memory, {memory.available / 1e9:.0f} GB free"
    )
    if not torch.cuda.is_available():
        built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}" if torch.version.cuda else ""
        if built and shutil.which("nvidia-smi"):
            mend = f"{built}: see what nvidia-smi shows; an older driver wants a torch for an older CUDA (pytorch.org)"
            yield Finding("bad", "gpu", "nvidia-smi is here, and torch can use no GPU", mend)
        else:
            yield Finding("note", "gpu", "none that torch can use", "small students train on the CPU")
        return
    for number in range(torch.cuda.device_count()):
        of = torch.cuda.get_device_properties(number)
        text = f"{of.name}, {of.total_memory / 1e9:.0f} GB, compute capability {of.major}.{of.minor}"
        if torch.cuda.is_bf16_supported():
            yield Finding("ok", f"gpu {number}", text)
        else:
            yield Finding("note", f"gpu {number}", text, "has no bf16: set compute.precision to fp32")


def attention() -> Iterator[Finding]:
    """Every attention kernel, run on a small batch on the device that a run would use."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    x = torch.randn(2, 4, 32, 64, device=device, dtype=dtype)
    running = []
    backends = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH)
    for backend in backends:
        try:
            with sdpa_kernel(backend):
                torch.nn.functional.scaled_dot_product_attention(x, x, x)
        except RuntimeError:
            continue  # what runs is listed, and nothing running is a finding
        running.append(backend.name.removesuffix("_ATTENTION").lower())
    if running:
        yield Finding("ok", "attention", f"scaled_dot_product_attention on {device} in {dtype}: {', '.join(running)}")
    else:
        yield Finding("bad", "attention", f"no kernel runs on {device}", "install a torch built for this device")
    packed = torch.randn(1, 4, 32, 64, device=device, dtype=dtype)
    starts_N1 = torch.tensor([0, 12, 32], dtype=torch.int32, device=device)
    try:
        packed_attention(
            torch.nn.Identity(), packed, packed, packed, None, is_causal=True, cu_seq_lens_q=starts_N1, max_length_q=20
        )
    except RuntimeError as error:
        mend = "packed chunks do not run; update torch"
        yield Finding("bad", NAME, str(error).splitlines()[0], mend)
    else:
        other = "texts of about one length together; the kernel needs a GPU and torch 2.10"
        how = "the variable-length kernel" if kernel_runs(packed) else other
        yield Finding("ok", NAME, how)


def ranks() -> Finding:
    """Two real processes that add a number up: NCCL where there are two GPUs, gloo otherwise."""
    gpus = torch.cuda.device_count()
    environment = dict(os.environ) if gpus >= 2 else {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"OMP_NUM_THREADS": "1"}
    name = "nccl" if gpus >= 2 else "gloo"
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "launch.two_ranks"]
    begun = time.perf_counter()
    alone = "run it alone: torchrun --nproc-per-node=2 -m launch.two_ranks"
    try:
        ended = subprocess.run(
            [sys.executable, *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=RANKS_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        mend = "the ranks do not find each other: look at firewall and host name, set NCCL_SOCKET_IFNAME"
        return Finding("bad", name, f"no answer in {RANKS_SECONDS} s", mend)
    if ended.returncode:
        errors = [line for line in ended.stderr.splitlines() if "Error" in line and "ChildFailed" not in line]
        return Finding("bad", name, f"two ranks failed: {errors[-1] if errors else 'their sum is wrong'}", alone)
    return Finding("ok", name, f"two ranks added up in {time.perf_counter() - begun:.1f} s, start included")


def disk(folder: Path) -> Iterator[Finding]:
    """Free space and speed where runs lie."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    mend = f"less than {LITTLE_SPACE / 1e9:.0f} GB: set output and cache to a larger disk"
    yield (
        Finding("ok", "space", f"{free / 1e9:.0f} GB free at {place}")
        if free > LITTLE_SPACE
        else Finding("bad", "space", f"{free / 1e9:.1f} GB free at {place}", mend)
    )
    sample = place / f".eyas-doctor-{os.getpid()}"
    data = os.urandom(1 << 20)
    try:
        begun = time.perf_counter()
        with sample.open("wb") as file:
            for _ in range(SAMPLE_BYTES >> 20):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        rate = SAMPLE_BYTES / (time.perf_counter() - begun)
    except OSError as error:
        yield Finding(
            "bad", "disk", f"{place}: {error.strerror}", "choose a folder that you may write to (output, cache)"
        )
        return
    finally:
        sample.unlink(missing_ok=True)
    text = f"{rate / 1e6:,.0f} MB/s written and synced at {place}"
    slow = "checkpoints and vectors will be slow: set output and cache to a local disk"
    yield Finding("ok", "disk", text) if rate > SLOW_DISK else Finding("note", "disk", text, slow)


def hub() -> Finding:
    """Whether models and data sets can be had by name."""
    if constants.HF_HUB_OFFLINE:
        return Finding(
            "note", "hub", "HF_HUB_OFFLINE is set", "name folders or package:… instead of hub ids, or unset it"
        )
    try:
        answer = httpx.head(constants.ENDPOINT, timeout=10, follow_redirects=True)
    except httpx.HTTPError as error:
        mend = "name folders or package:… instead of hub ids; or set HF_ENDPOINT to a mirror, or HTTPS_PROXY"
        return Finding("note", "hub", f"{constants.ENDPOINT} does not answer ({type(error).__name__})", mend)
    return Finding("ok", "hub", f"{constants.ENDPOINT} answers ({answer.status_code})")


def tokens() -> Iterator[Finding]:
    """Whether there are keys; never what they are."""
    if get_token():
        yield Finding("ok", "token", "a Hugging Face token is set")
    else:
        yield Finding("note", "token", "no Hugging Face token", "for gated models and push: hf auth login, or HF_TOKEN")
    for part, names in TOKENS.items():
        found = [name for name in names if os.environ.get(name)]
        if found:
            yield Finding("ok", "key", f"{found[0]} is set, for {part}")
        else:
            yield Finding("note", "key", f"{' and '.join(names)} not set", f"only {part} needs it")
