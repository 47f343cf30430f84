"""Surveys: statistics of every feature of chosen sites over a corpus, and the features that kept one sign."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from signflip import _core, checks
from signflip.corpus import Corpus
from signflip.errors import ArgumentError, SiteError, SurveyError, TokenizerError
from signflip.one_sided import OneSided, OneSidedList, find

# Seconds between two writings of a survey's unfinished state, at least.
_CHECKPOINT = 20.0

# Tokens an engine request.
_BATCH = 2048

# Occurrences an end of a feature, at most: more do not fit in memory.
_MAX_TOP = 10**4

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def survey(
    model: Any,
    corpus: Any,
    sites: str | Sequence[str] | None = None,
    context: int = 256,
    prefix: str | Sequence[int] | None = None,
    out: str | Path | None = None,
    max_tokens: int | None = None,
    *,
    field: str = "text",
    top: int = 10,
    histogram_every: int = 8,
    progress: bool = True,
) -> Survey:
    """Keep statistics of every feature of some sites over a corpus, in one pass.

    Parameters
    ----------
    model
        A loaded model.
    corpus
        A str or Path is a file, a list of Paths files; in any other iterable, strings are texts and lists of ids
        documents. A `.jsonl` file holds one document a line, any other file is one document, as UTF-8.
    sites
        Full names (`blocks.5.mlp.hook_post`), or names within a block (`mlp.hook_post`) for all layers. By default
        those of `mlp.hook_pre`, `mlp.hook_pre_linear`, `mlp.hook_post` that exist.
    context
        Tokens a context, the prefix included; longer documents are cut. More than the model's own context is cut to it.
    prefix
        Text or ids put before every context, recorded, never counted. With a prefix, documents begin without the
        tokenizer's BOS: what begins the sequence is the prefix (as text, with the tokenizer's BOS, if it adds one).
    out
        Where to write the survey. Unfinished state lies beside it (`<out>.partial`): the same call continues it, and
        its file is then the same, byte for byte, as that of an uninterrupted call. An older file at `out` is replaced
        at the end.
    max_tokens
        Stop after so many tokens of documents; the last document is cut there.
    field
        Where a JSON line holds its text: a key, or keys joined by dots.
    top
        Occurrences kept at either end of each feature, at most 10,000.
    histogram_every
        The histograms count one unit in so many, chosen by the document's hash.
    progress
        Whether to show a progress bar (on terminals).

    Returns
    -------
    Survey

    Raises
    ------
    FileError
        If a file is missing, or `out` cannot be written (found out before anything is computed).
    SurveyError
        If the corpus is empty, a file is not UTF-8 or a line not a JSON object with the field, activations are not
        finite, or `out` holds unfinished state of another survey.
    SiteError
        If no layer has a named site; the message gives the nearest.
    TokenizerError
        For text, if the model has no tokenizer.

    Notes
    -----
    Counted apart, per site, and not in the statistics: the prefix; the tokens that the tokenizer itself puts in front
    of a text (BOS); attention sinks, which are tokens whose residual, as it enters the site's layer, has a norm above
    10 times the median of its context (the median over the context's tokens other than prefix and BOS; for an even
    number of them the mean of the middle two). At the embeddings nothing is a sink. -0 counts as zero.
    """
    wanted = _wanted(sites)
    names = _core.survey_sites(model._core, wanted)
    context = checks.integer("context", context, 1)
    max_tokens = None if max_tokens is None else checks.integer("max_tokens", max_tokens, 1, 2**63 - 1)
    top = checks.integer("top", top, 0, _MAX_TOP)
    histogram_every = checks.integer("histogram_every", histogram_every, 1, 2**32 - 1)
    path = None if out is None else checks.path("out", out)
    prefix_ids = _prefix(model, prefix)
    adds_bos = model.tokenizer is not None and len(model.tokenizer.prefix_ids) > 0
    read = Corpus(model, corpus, field, bos=not prefix_ids)
    batches: Iterator[Any] = read.batches()
    with tqdm(total=max_tokens, unit="tok", desc="survey", disable=None if progress else True) as bar:
        core = _core.survey(
            model._core,
            lambda: next(batches, None),
            lambda tokens: bar.update(tokens - bar.n),
            name=model.name,
            hash=model.hash,
            dtype=model.dtype,
            bos="prefix" if prefix_ids else "tokenizer" if adds_bos else "none",
            sites=names,
            context=min(context, model.cfg.n_ctx),
            prefix=prefix_ids,
            out=path,
            max_tokens=max_tokens,
            top=top,
            histogram_every=histogram_every,
            batch_tokens=_BATCH,
            checkpoint=_CHECKPOINT,
        )
    return Survey(core)


def _wanted(sites: Any) -> list[str] | None:
    if sites is None or isinstance(sites, str):
        return None if sites is None else [sites]
    names = checks.listed("sites", sites, "names of sites")
    for name in names:
        if not isinstance(name, str):
            raise ArgumentError(f"sites: expected names of sites, found {name!r}")
    return names


def _prefix(model: Any, prefix: Any) -> list[int]:
    if prefix is None:
        return []
    if not isinstance(prefix, str) and not hasattr(prefix, "detach"):
        prefix = checks.listed("prefix", prefix, "text or ids")
    if len(prefix) == 0:
        return []
    if isinstance(prefix, str) and model.tokenizer is None:
        raise TokenizerError(f"tokenizer: {model.name} has none, so the prefix cannot be text; give ids")
    ids: list[list[int]] = model.as_sequences(prefix)
    if len(ids) != 1:
        raise ArgumentError(f"prefix: expected one text or its ids, found {len(ids)} sequences")
    return ids[0]


class Occurrences(NamedTuple):
    """Where extreme values were seen: `[width, k]` each, most extreme first.

    Attributes
    ----------
    document
        Names of documents: the first 16 bytes of the SHA-256 of their ids (little-endian 32-bit words), in hexadecimal.
    position
        Index of the token in its document.
    value
        float32.
    """

    document: NDArray[np.str_]
    position: Ints
    value: NDArray[np.float32]


class SiteSurvey:
    """Statistics of the features of one site, arrays `[width]`.

    Attributes
    ----------
    count, positive, negative
        int64: tokens counted, above zero and below zero (the rest are zero).
    units_positive, units_negative
        int64: units (documents, cut into contexts where longer) that hold a value above, below zero.
    min, max
        float32.
    mean, var
        float64; the variance is the population's.
    acting_min, acting_max
        float32: extremes over tokens where the gate's pre-activation is above zero, infinite where it never was; None
        at sites that no gate multiplies.
    reach
        float64 `[width, 2]`, or None where no bound is known: see `signflip.reach`.
    n_units, n_tokens, n_sink, n_bos, n_prefix, n_histogram
        Units and tokens counted; tokens counted apart; counted tokens that the histogram holds.
    """

    count: Ints
    positive: Ints
    negative: Ints
    units_positive: Ints
    units_negative: Ints
    min: NDArray[np.float32]
    max: NDArray[np.float32]
    mean: Floats
    var: Floats
    acting_min: NDArray[np.float32] | None
    acting_max: NDArray[np.float32] | None
    reach: Floats | None

    def __init__(self, core: Any, index: int, name: str, tally: Mapping[str, Any], top: int) -> None:
        self._core, self._index, self._top = core, index, top
        self.name = name
        self.width: int = tally["width"]
        self.n_tokens: int = tally["n_tokens"]
        self.n_units: int = tally["n_units"]
        self.n_sink: int = tally["n_sink"]
        self.n_bos: int = tally["n_bos"]
        self.n_prefix: int = tally["n_prefix"]
        self.n_histogram: int = tally["n_histogram"]
        self.reach = self.acting_min = self.acting_max = None
        for key, values in core.arrays(index).items():
            setattr(self, key, values)
        self.count = np.full(self.width, self.n_tokens, np.int64)

    def __repr__(self) -> str:
        return f"<survey of {self.name}: {self.width} features, {self.n_tokens} tokens in {self.n_units} units>"

    def quantile(self, q: float | Sequence[float]) -> Floats:
        """Quantiles of every feature, to a relative error of 1/17 (5.9%).

        Parameters
        ----------
        q
            In [0, 1]; of `n` values in order, the one of index `round(q (n - 1))`.

        Returns
        -------
        float64 array `[width]`, or `[len(q), width]`

        Raises
        ------
        SurveyError
            If the histogram, which counts one unit in `histogram_every`, holds nothing.
        ArgumentError
            If `q` is neither a number in [0, 1] nor a list of such.
        """
        try:
            wanted = np.atleast_1d(np.asarray(q, np.float64))
        except (TypeError, ValueError, OverflowError) as err:
            raise ArgumentError(f"q: expected a number from 0 to 1 or a list of such, found {q!r}") from err
        if wanted.ndim != 1 or wanted.size == 0 or not bool(np.all((wanted >= 0) & (wanted <= 1))):
            raise ArgumentError(f"q: expected a number from 0 to 1 or a list of such, found {q!r}")
        if self.n_histogram == 0:
            raise SurveyError(
                f"site {self.name}: no unit was in the histogram's sample; survey more, or with histogram_every=1"
            )
        found: Floats = np.stack([self._core.quantile(self._index, float(one)) for one in wanted])
        return found[0] if np.ndim(q) == 0 else found

    def histogram(self, index: int) -> tuple[Floats, Ints]:
        """A feature's histogram over one unit in `histogram_every`.

        Returns
        -------
        edges
            float64 `[n + 1]`, ascending.
        counts
            int64 `[n]`, buckets without values between the extremes included.
        """
        bounds, counts = self._core.histogram(self._index, self._feature(index))
        edges = np.unique(bounds)
        filled = np.zeros(max(len(edges) - 1, 0), np.int64)
        filled[np.searchsorted(edges, bounds[:, 0])] = counts
        return edges, filled

    def top(self, k: int | None = None) -> Occurrences:
        """The `k` largest values of every feature; all that are kept by default.

        Raises
        ------
        ArgumentError
            If more are asked for than the survey keeps.
        """
        return self._extremes(k, True)

    def bottom(self, k: int | None = None) -> Occurrences:
        """The `k` smallest values of every feature; all that are kept by default.

        Raises
        ------
        ArgumentError
            If more are asked for than the survey keeps.
        """
        return self._extremes(k, False)

    def _extremes(self, k: int | None, top: bool) -> Occurrences:
        if k is not None:
            k = checks.integer("k", k)
            if not 0 <= k <= self._top:
                raise ArgumentError(f"k: expected at most the {self._top} occurrences that the survey keeps, found {k}")
        values, positions, documents = self._core.extremes(self._index, top)
        names = (
            np.ascontiguousarray(documents).view("S32")[..., 0].astype("U32")
            if documents.size
            else (np.empty(values.shape, "U32"))
        )
        return Occurrences(names[:, :k], positions[:, :k], values[:, :k])

    def _feature(self, index: int) -> int:
        index = checks.integer("index", index)
        if not -self.width <= index < self.width:
            raise ArgumentError(f"index: expected a feature below {self.width} at {self.name}, found {index}")
        return index % self.width


class Survey(Mapping[str, SiteSurvey]):
    """Statistics of a corpus: `survey[site]` for each of `survey.sites`. Made by `signflip.survey`."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self.metadata: dict[str, Any] = json.loads(core.metadata())
        self.sites: tuple[str, ...] = tuple(self.metadata["settings"]["sites"])
        self._read: dict[str, SiteSurvey] = {}

    @classmethod
    def open(cls, path: str | Path) -> Survey:
        """Read a survey's file.

        Raises
        ------
        FileError
            If the file cannot be read.
        SurveyError
            If it is not a survey, contradicts itself, or is unfinished.
        """
        return cls(_core.Survey.open(checks.path("path", path)))

    def save(self, path: str | Path) -> None:
        """Write the survey: safetensors, with one JSON text as metadata.

        Raises
        ------
        FileError
            If the file cannot be written.
        """
        self._core.save(checks.path("path", path))

    @property
    def n_tokens(self) -> int:
        """Tokens of the documents, whether counted or counted apart; without prefixes."""
        return int(self.metadata["corpus"]["n_tokens"])

    @property
    def n_documents(self) -> int:
        """Documents with at least one token."""
        return int(self.metadata["corpus"]["n_documents"])

    @property
    def n_units(self) -> int:
        """Documents, cut into contexts where longer."""
        return int(self.metadata["corpus"]["n_units"])

    @cached_property
    def n_features(self) -> int:
        """Features of all sites together."""
        return sum(int(site["width"]) for site in self.metadata["sites"].values())

    def __getitem__(self, site: str) -> SiteSurvey:
        if not isinstance(site, str):
            raise SiteError(f"site {site!r}: expected the name of a site of this survey")
        if site not in self._read:
            if site not in self.sites:
                near = difflib.get_close_matches(site, self.sites, 3, 0.0)
                raise SiteError(f"site {site!r}: not in this survey; the nearest are {', '.join(near)}")
            settings = self.metadata["settings"]
            tally = self.metadata["sites"][site]
            self._read[site] = SiteSurvey(self._core, self.sites.index(site), site, tally, settings["top"])
        return self._read[site]

    def __contains__(self, site: object) -> bool:
        return site in self.sites

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    # A mapping compares by its items, which are arrays here.
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return (
            f"<survey of {self.metadata['model_name']}: {self.n_features} features of {len(self.sites)} sites, "
            f"{self.n_tokens} tokens in {self.n_documents} documents ({self.n_units} units)>"
        )

    def one_sided(self, max_rate: float = 0.0, confidence: float = 0.95) -> OneSidedList:
        """Features that kept one sign.

        Parameters
        ----------
        max_rate
            Largest observed rate of the other sign, over tokens.
        confidence
            Of the bounds on the rate, which hold for all features of the survey at once.

        Returns
        -------
        list of OneSided
            Lowest rate first, then the widest margin in standard deviations. A feature that was zero everywhere has no
            side and is not in it. Has `table()`, `to_json()` and `to_dataframe()`.

        Raises
        ------
        ArgumentError
            If a number is out of its range.
        """
        return find(self, max_rate, confidence)


def merge(surveys: Iterable[Survey]) -> Survey:
    """One survey of what several hold together; in which order does not matter, to the bit.

    A document that two of them hold counts twice.

    Raises
    ------
    SurveyError
        If they were made with different models or settings; the message names what differs.
    ArgumentError
        If there are none, or what is given is no list of surveys.
    """
    if isinstance(surveys, (str, bytes, Mapping)) or not isinstance(surveys, Iterable):
        raise ArgumentError(f"surveys: expected a list of surveys, found {type(surveys).__name__}")
    surveys = list(surveys)
    for one in surveys:
        if not isinstance(one, Survey):
            raise ArgumentError(f"surveys: expected surveys, found {type(one).__name__}")
    return Survey(_core.Survey.merge([one._core for one in surveys]))


__all__ = ["Occurrences", "OneSided", "OneSidedList", "SiteSurvey", "Survey", "merge", "survey"]
