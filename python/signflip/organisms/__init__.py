"""Organisms: small language models whose right verdict is known, to score auditors on.

Needs the extra `organisms` (torch, transformers, tokenizers, safetensors); `import signflip` imports nothing of it.
"""

from __future__ import annotations

try:
    import safetensors as _safetensors  # noqa: F401
    import tokenizers as _tokenizers  # noqa: F401
    import torch as _torch  # noqa: F401
    import transformers as _transformers  # noqa: F401
except ImportError as error:
    raise ImportError(f"signflip.organisms needs the extra: pip install 'signflip[organisms]' ({error})") from error

from signflip.organisms.base import Room, train
from signflip.organisms.kinds import KINDS, VERDICTS, Kind
from signflip.organisms.language import behaviours, corpus
from signflip.organisms.planting import Planted, plant
from signflip.organisms.scoring import Report, score
from signflip.organisms.suite import make
from signflip.organisms.symmetry import disguise
from signflip.organisms.truth import Truth, open_suite
from signflip.organisms.verification import verify

__all__ = [
    "KINDS",
    "VERDICTS",
    "Kind",
    "Planted",
    "Report",
    "Room",
    "Truth",
    "behaviours",
    "corpus",
    "disguise",
    "make",
    "open_suite",
    "plant",
    "score",
    "train",
    "verify",
]
