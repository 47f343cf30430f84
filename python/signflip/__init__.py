"""signflip: finds features of a language model that training never saw change sign, and asks what happens when they do.

>>> import signflip as sf
>>> model = sf.load("HuggingFaceTB/SmolLM2-135M-Instruct")  # doctest: +SKIP
"""

from __future__ import annotations

import logging

from signflip import errors
from signflip._core import __version__, set_num_threads
from signflip.edits import Edit, PerSequence
from signflip.errors import SignflipError
from signflip.loading import load
from signflip.model import ActivationCache, Model, get_act_name

logging.getLogger("signflip").addHandler(logging.NullHandler())

__all__ = [
    "ActivationCache",
    "Edit",
    "Model",
    "PerSequence",
    "SignflipError",
    "__version__",
    "errors",
    "get_act_name",
    "load",
    "set_num_threads",
]
