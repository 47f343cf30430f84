"""What several test files start from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

import checkpoints
import signflip as sf
import small_organisms
from signflip._core import num_threads
from signflip.organisms.weights import Weights

# Two threads of torch's in each of two processes on two cores wait for each other most of the time.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """On models this small threads cost more than they do."""
    before, torchs = num_threads(), torch.get_num_threads()
    sf.set_num_threads(1)
    torch.set_num_threads(1)
    yield
    sf.set_num_threads(before)
    torch.set_num_threads(torchs)


@pytest.fixture(scope="session")
def texted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a byte-level BPE, so that many sequences of ids do not come back, a BOS and a chat template."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<s>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(
        ["the cat sat on the mat and the dog ran to the other cat that sat there"] * 4, trainer
    )
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    folder = tmp_path_factory.mktemp("texted")
    checkpoints.llama(vocab_size=350).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}[assistant]"
    settings = {"chat_template": template, "bos_token": "<s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def texted(texted_folder: Path) -> Any:
    """That model, loaded."""
    return sf.load(texted_folder)


@pytest.fixture(scope="session")
def bases_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where organisms' bases are kept."""
    return tmp_path_factory.mktemp("bases")


@pytest.fixture(scope="session")
def bases(bases_folder: Path) -> dict[str, Weights]:
    """A base of organisms in each family, trained in small."""
    return small_organisms.bases(bases_folder)


@pytest.fixture(scope="session")
def planted(bases: dict[str, Weights]) -> dict[str, Any]:
    """An organism of each kind, disguised, the families by turns, and its card."""
    return small_organisms.planted(bases)
