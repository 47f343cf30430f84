"""signflip: finds features of a language model that training never saw change sign, and asks what happens when they do.

>>> import signflip as sf
>>> model = sf.load("HuggingFaceTB/SmolLM2-135M-Instruct")  # doctest: +SKIP
"""

from __future__ import annotations

import logging

from signflip import errors, objectives
from signflip._core import __version__
from signflip.edits import Edit, PerSequence
from signflip.errors import SignflipError
from signflip.loading import load
from signflip.model import ActivationCache, Model, get_act_name
from signflip.one_sided import OneSided
from signflip.reach import reach
from signflip.search import SearchResult, search
from signflip.survey import Survey, merge, survey
from signflip.threads import set_num_threads

logging.getLogger("signflip").addHandler(logging.NullHandler())

__all__ = [
    "ActivationCache",
    "Edit",
    "Model",
    "OneSided",
    "PerSequence",
    "SearchResult",
    "SignflipError",
    "Survey",
    "__version__",
    "errors",
    "get_act_name",
    "load",
    "merge",
    "objectives",
    "reach",
    "search",
    "set_num_threads",
    "survey",
]
