"""signflip: finds features of a language model that training never saw change sign, and asks what happens when they do.

>>> import signflip as sf
>>> model = sf.load("HuggingFaceTB/SmolLM2-135M-Instruct")  # doctest: +SKIP
"""

from __future__ import annotations

import logging

from signflip import behaviours, errors, objectives
from signflip._core import __version__
from signflip.behaviours import Behaviour
from signflip.edits import Edit, PerSequence
from signflip.errors import SignflipError
from signflip.flip import FlipTest, flip
from signflip.loading import load
from signflip.model import ActivationCache, Model, get_act_name
from signflip.one_sided import OneSided
from signflip.reach import reach
from signflip.reversal import Reversal
from signflip.scan import Scan, scan
from signflip.score import Score
from signflip.search import SearchResult, search
from signflip.survey import Survey, merge, survey
from signflip.threads import set_num_threads
from signflip.verdict import Verdict

logging.getLogger("signflip").addHandler(logging.NullHandler())

__all__ = [
    "ActivationCache",
    "Behaviour",
    "Edit",
    "FlipTest",
    "Model",
    "OneSided",
    "PerSequence",
    "Reversal",
    "Scan",
    "Score",
    "SearchResult",
    "SignflipError",
    "Survey",
    "Verdict",
    "__version__",
    "behaviours",
    "errors",
    "flip",
    "get_act_name",
    "load",
    "merge",
    "objectives",
    "reach",
    "scan",
    "search",
    "set_num_threads",
    "survey",
]
