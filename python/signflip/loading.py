"""From a path or hub id to what a model is made of: checkpoint, tokenizer, chat template."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub

from signflip import _core, chat
from signflip.errors import ArgumentError, CheckpointError, FileError
from signflip.gguf import GgufFile
from signflip.gguf_tokenizer import tokenizer_json

if TYPE_CHECKING:
    from signflip.model import Model

# What a model is made of; weights in other formats, which may be large, are not fetched.
_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
_LAST_ID = 2**32 - 1
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Loaded:
    """What a model is built from.

    Attributes
    ----------
    checkpoint
        Architecture and weights.
    tokenizer
        None where the model comes without one.
    chat_template
        A Jinja template, None where there is none.
    bos_id, eos_id
        Ids of the tokens that begin and end a text, None where none is named.
    bos_token, eos_token
        The same as text.
    stop_ids
        Ids that end a generated text: `eos_id` and others that the generation config names.
    source
        The folder or file.
    files
        Every file that was used, for `model_hash`.
    name
        Hub id, or name of the folder or file.
    """

    checkpoint: _core.Checkpoint
    tokenizer: _core.Tokenizer | None
    chat_template: str | None
    bos_id: int | None
    eos_id: int | None
    bos_token: str | None
    eos_token: str | None
    stop_ids: tuple[int, ...]
    source: Path
    files: tuple[Path, ...]
    name: str


def resolve(path_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """The local folder or GGUF file that a path or hub id stands for.

    What exists on disk is that; anything else that can be a hub id is fetched into the hub's cache. With
    ``HF_HUB_OFFLINE=1``, or without a network, the cache answers alone.

    Parameters
    ----------
    path_or_hub_id
        A folder, a ``.gguf`` file, or a hub id such as ``HuggingFaceTB/SmolLM2-135M-Instruct``.
    revision
        Branch, tag or commit of a hub id.

    Raises
    ------
    FileError
        If there is no such path and the hub, or its cache, has no such model.
    ArgumentError
        If a revision is given for a path.
    """
    if not isinstance(path_or_hub_id, (str, os.PathLike)):
        raise ArgumentError(f"path_or_hub_id: expected a path or a hub id, found {path_or_hub_id!r}")
    shown = str(path_or_hub_id)
    shown = shown if len(shown) <= 256 else f"{shown[:256]}..."
    try:
        path = Path(path_or_hub_id).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError, ValueError) as err:
        reason = (err.strerror if isinstance(err, OSError) else None) or err
        raise FileError(f"{shown}: no such file or folder: {reason}") from err
    if exists:
        if revision is not None:
            raise ArgumentError(f"revision: expected none for a local path, found {revision!r} for {path}")
        if path.is_dir() or path.suffix == ".gguf":
            return path
        raise FileError(f"{path}: expected a folder or a .gguf file, found another file")
    name = str(path_or_hub_id)
    if not _HUB_ID.fullmatch(name) or name.endswith(".gguf"):
        raise FileError(f"{shown}: no such file or folder, and not a hub id")
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
    # Whatever it is: what the network's client below raises differs by the hub's version.
    except Exception as err:
        at = f" at revision {revision!r}" if revision else ""
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise FileError(f"{name}: no such file or folder, and the hub gives no such model{at}: {reason}") from err


def load_parts(path_or_hub_id: str | Path, revision: str | None = None) -> Loaded:
    """Opens a model's checkpoint, tokenizer and chat template.

    Parameters
    ----------
    path_or_hub_id, revision
        As in `resolve`.

    Raises
    ------
    FileError
        If something cannot be found or read.
    CheckpointError
        If the checkpoint is malformed, incomplete, or pickled.
    UnsupportedModelError
        If the engine does not build the architecture.
    TokenizerError
        If the tokenizer is malformed or of a kind that is not supported.
    """
    source = resolve(path_or_hub_id, revision)
    if source.is_dir():
        local = Path(path_or_hub_id).expanduser().exists()
        return _load_folder(source, source.resolve().name if local else str(path_or_hub_id))
    return _load_gguf(source)


def _load_folder(folder: Path, name: str) -> Loaded:
    checkpoint = _core.Checkpoint.open(folder)
    config = _read_json(folder / "config.json")
    generation = _read_json(folder / "generation_config.json")
    tokenizer_config = _read_json(folder / "tokenizer_config.json")
    tokenizer_path = folder / "tokenizer.json"
    tokenizer = _core.Tokenizer.from_file(tokenizer_path) if tokenizer_path.exists() else None
    template, template_path = chat.read_template(folder, tokenizer_config)

    def special(which: str) -> tuple[int | None, str | None]:
        """By the tokenizer's word where it has one, else by the config's id."""
        token = _content(tokenizer_config.get(f"{which}_token"))
        if token is not None and tokenizer is not None and (known := tokenizer.token_to_id(token)) is not None:
            return known, token
        ids = _ids(config, "config.json", f"{which}_token_id")
        if not ids:
            return None, None
        return ids[0], tokenizer.id_to_piece(ids[0]) if tokenizer is not None else None

    bos_id, bos_token = special("bos")
    eos_id, eos_token = special("eos")
    stops = [] if eos_id is None else [eos_id]
    if "eos_token_id" in generation:
        stops += _ids(generation, "generation_config.json", "eos_token_id")
    else:
        stops += _ids(config, "config.json", "eos_token_id")
    weights = sorted(folder.glob("model*.safetensors"))
    single = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if single.exists():
        weights = [single]
    else:
        shards = set(_read_json(index).get("weight_map", {}).values())
        weights = [index, *(path for path in weights if path.name in shards)]
    used = [folder / "config.json", *weights, tokenizer_path, folder / "tokenizer_config.json"]
    if template_path is not None:
        used.append(template_path)
    return Loaded(
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        chat_template=template,
        bos_id=bos_id,
        eos_id=eos_id,
        bos_token=bos_token,
        eos_token=eos_token,
        stop_ids=tuple(dict.fromkeys(stops)),
        source=folder,
        files=tuple(path for path in used if path.exists()),
        name=name,
    )


def _load_gguf(path: Path) -> Loaded:
    file = GgufFile(path)
    described = tokenizer_json(file)
    tokenizer = None if described is None else _core.Tokenizer.from_json(described)
    bos_id, eos_id = file.special("bos"), file.special("eos")
    return Loaded(
        checkpoint=file.checkpoint(),
        tokenizer=tokenizer,
        chat_template=file.value("tokenizer.chat_template", str),
        bos_id=bos_id,
        eos_id=eos_id,
        bos_token=None if tokenizer is None or bos_id is None else tokenizer.id_to_piece(bos_id),
        eos_token=None if tokenizer is None or eos_id is None else tokenizer.id_to_piece(eos_id),
        stop_ids=() if eos_id is None else (eos_id,),
        source=path,
        files=(path,),
        name=path.stem,
    )


def model_hash(files: Iterable[Path]) -> str:
    """SHA-256 of a model: of the lines ``{sha256 of a file}  {its name}``, sorted by name.

    The folder does not enter, so a copy elsewhere has the same hash.

    Raises
    ------
    FileError
        If a file cannot be read.
    """
    lines = []
    for path in sorted(files, key=lambda path: path.name):
        try:
            with path.open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
        except OSError as err:
            raise FileError(f"{path}: {err.strerror or err}") from err
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except OSError as err:
        raise FileError(f"{path}: {err.strerror or err}") from err
    except (ValueError, RecursionError) as err:
        raise CheckpointError(f"checkpoint {path.name}: expected JSON: {err}") from err
    if not isinstance(value, dict):
        raise CheckpointError(f"checkpoint {path.name}: expected a JSON object, found {str(value)[:60]}")
    return value


def _content(token: Any) -> str | None:
    """A special token, which some files write as an object."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _ids(config: dict[str, Any], file: str, key: str) -> list[int]:
    """Token ids, which configs write as one, as a list, or as null."""
    value = config.get(key)
    values = value if isinstance(value, list) else [value]
    found = [each for each in values if isinstance(each, int) and not isinstance(each, bool) and each >= 0]
    if any(each > _LAST_ID for each in found):
        raise CheckpointError(f"{file}, {key}: expected ids of at most {_LAST_ID}, found {max(found)}")
    return found


def load(path_or_hub_id: str | Path, revision: str | None = None, device: str = "cpu", dtype: str = "float32") -> Model:
    """Load a model.

    Parameters
    ----------
    path_or_hub_id
        A Hugging Face folder, a `.gguf` file, or a hub id.
    revision
        Of the hub's repository.
    device
        `"cpu"`, or `"cuda:N"` where the build has CUDA.
    dtype
        Of weights and activations: `"float32"` on the CPU.

    Raises
    ------
    FileError, CheckpointError, UnsupportedModelError, TokenizerError
        If the checkpoint cannot be had or read.
    DeviceError
        If the device cannot be used here.
    ArgumentError
        If an argument is of another kind.
    """
    from signflip.model import Model

    for which, value, wanted in (("device", device, "'cpu' or 'cuda:N'"), ("dtype", dtype, "a name such as 'float32'")):
        if not isinstance(value, str):
            raise ArgumentError(f"{which}: expected {wanted}, found {value!r}")
    parts = load_parts(path_or_hub_id, revision)
    return Model(_core.Model(parts.checkpoint, device, dtype), parts, device, dtype)
