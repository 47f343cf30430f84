"""The extension: what the Rust core looks like from Python. Checked against the built module by `make lint`."""

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any, Literal, SupportsIndex, TypedDict, final, type_check_only

import numpy as np
import numpy.typing as npt

__version__: str

@type_check_only
class _BuildInfo(TypedDict):
    version: str
    profile: Literal["debug", "release"]
    target: str
    cpu_features: list[str]
    kernels: str
    threads: int
    cuda: str

def build_info() -> _BuildInfo:
    """What this extension was built as and runs on; `cuda` says why CUDA is unavailable."""

def num_threads() -> int:
    """The number of worker threads in use."""

def set_num_threads(n: int) -> None:
    """Set the number of worker threads of all CPU models."""

@final
class Checkpoint:
    """An opened checkpoint: config read, every tensor's presence, shape and dtype checked, weights read when needed."""

    @staticmethod
    def open(path: str | PathLike[str]) -> Checkpoint:
        """Open a Hugging Face folder."""

    @staticmethod
    def from_tensors(
        config_json: str,
        get: Callable[[str], npt.NDArray[np.float32]],
        shapes: dict[str, list[int]],
    ) -> Checkpoint:
        """Open tensors given by `get(name)`, a C-contiguous float32 array of the shape stated for that name."""

    def spec(self) -> dict[str, Any]:
        """The architecture."""

    def block_weights(self, layer: int) -> dict[str, npt.NDArray[np.float32]]:
        """Weights of one block, as `[outputs, inputs]` matrices, biases, and gains, by the engine's names."""

    def outer_weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """Weights outside the blocks; `head` only where it is not the embedding."""

# (-1, 0, 0, ids): a root; (0, segment, kept, ids): a child of an earlier segment after its first `kept` tokens;
# (1, sequence, kept, ids): a continuation of a cached sequence.
_Segment = tuple[int, int, int, Sequence[int]]

# Rows are int64 `[n, 3]`: variant (0 is clean), segment, offset in the segment's own tokens.
_Rows = npt.NDArray[np.int64]
_Read = (
    tuple[Literal["values"], _Rows, str, Sequence[int] | None]  # site, columns
    | tuple[Literal["project"], _Rows, str, Sequence[float]]  # site, vector `[width]`
    | tuple[Literal["logits"], _Rows, Sequence[int] | None]  # columns
    | tuple[Literal["log_prob"], _Rows, Sequence[int]]  # the token wanted of each row
)

# Site, operation, columns, (segment, offset) of the rows, values; None is all of them.
_Op = Literal["set", "add", "scale", "clamp"]
_Edit = tuple[str, _Op, Sequence[int] | None, Sequence[tuple[int, int]] | None, Sequence[float]]

_HookStep = Callable[[str, npt.NDArray[np.float32]], npt.NDArray[np.float32] | None]

_WeightTable = Literal[
    "attn_norm_bias",
    "attn_norm_gain",
    "embed",
    "final_norm_bias",
    "final_norm_gain",
    "in",
    "in_bias",
    "in_linear",
    "in_linear_bias",
    "k",
    "mlp_norm_bias",
    "mlp_norm_gain",
    "out",
    "q",
    "unembed",
    "v",
]

@final
class Cache:
    """Keys and values of sequences that later requests continue. Made by `Model.run` with `keep`."""

@final
class Model:
    """A model on a device."""

    def __new__(cls, checkpoint: Checkpoint, device: str, dtype: str) -> Model: ...
    def spec(self) -> str:
        """The architecture, as JSON."""

    def sites(self) -> list[str]:
        """Names of all sites, in forward order."""

    def site(self, name: str) -> tuple[int, int | None, int]:
        """A site's layer, heads (None where it has none) and width; a key axis counts as 1 wide."""

    def run(
        self,
        segments: Sequence[_Segment],
        reads: list[_Read],
        variants: list[list[_Edit]],
        cache: Cache | None = None,
        keep: bool = False,
        keep_variant: int = 0,
        hooks: tuple[Sequence[str], _HookStep] | None = None,
    ) -> tuple[list[npt.NDArray[np.float32]], Cache | None]:
        """Run a request: one output a read, `[rows, columns]`, or `[rows]` for "project" and "log_prob".

        `hooks` are sites and `fn(name, values [rows, width])`, whose result, if any, takes the values' place.
        """

    def weight_row(self, kind: _WeightTable, layer: int, row: int) -> npt.NDArray[np.float32]:
        """One row of a weight table, `[width]`."""

    def weight_matrix(self, kind: _WeightTable, layer: int) -> npt.NDArray[np.float32]:
        """All rows of a weight table, `[rows, width]`."""

@final
class Tokenizer:
    """A tokenizer, from a `tokenizer.json`. Threads may share it."""

    @staticmethod
    def from_json(json: str) -> Tokenizer:
        """From the text of a `tokenizer.json`."""

    @staticmethod
    def from_file(path: str | PathLike[str]) -> Tokenizer:
        """From a `tokenizer.json`."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text; with `add_special_tokens`, those that the tokenizer itself adds (BOS) too."""

    def decode(self, ids: Iterable[SupportsIndex], skip_special_tokens: bool = False) -> str:
        """Text of ids, exactly."""

    def encode_batch(self, texts: Iterable[str], add_special_tokens: bool = True) -> list[list[int]]:
        """`encode` of many texts, in parallel."""

    def decode_batch(self, lists: Iterable[Iterable[SupportsIndex]], skip_special_tokens: bool = False) -> list[str]:
        """`decode` of many lists of ids, in parallel."""

    def token_strings(self, ids: Iterable[SupportsIndex]) -> list[str]:
        """Text of each id by itself."""

    def round_trips(self, ids: Iterable[SupportsIndex]) -> bool:
        """Whether decoding the ids and encoding the text again gives the same ids."""

    def round_trips_batch(self, lists: Iterable[Iterable[SupportsIndex]]) -> list[bool]:
        """`round_trips` of many lists of ids, in parallel."""

    def id_to_piece(self, token: int) -> str | None:
        """A token as the vocabulary writes it, None for an id that it does not have."""

    def token_to_id(self, piece: str) -> int | None:
        """Id of a token as the vocabulary writes it."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    @property
    def special_ids(self) -> list[int]:
        """Ids of special tokens, ascending."""

    @property
    def prefix_ids(self) -> list[int]:
        """Ids that `encode` puts in front of a text (BOS), often none."""

@final
class Survey:
    """Statistics of every feature of some sites; sites are named by their place in the settings' list."""

    @staticmethod
    def open(path: str | PathLike[str]) -> Survey:
        """Read a file and check all that it says."""

    def save(self, path: str | PathLike[str]) -> None:
        """Write the file."""

    @staticmethod
    def merge(surveys: Sequence[Survey]) -> Survey:
        """One survey of what these hold together."""

    def metadata(self) -> str:
        """What the survey rests on, as JSON."""

    def arrays(self, site: int) -> dict[str, npt.NDArray[Any]]:
        """A site's statistics by name, one entry a feature: float32 extremes, int64 counts, float64 moments, reach."""

    def quantile(self, site: int, q: float) -> npt.NDArray[np.float64]:
        """A quantile of every feature, from the histograms."""

    def histogram(self, site: int, feature: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """A feature's histogram: bounds `[n, 2]` of its buckets in order, and counts `[n]`."""

    def extremes(
        self, site: int, top: bool
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """Values and positions `[width, kept]` of the most extreme occurrences, and documents `[width, kept, 32]`.

        A document is the bytes of its name, which is hexadecimal.
        """

def survey_sites(model: Model, names: Sequence[str] | None) -> list[str]:
    """Full names of the sites that a survey of these names covers; the default ones for None."""

def survey(
    model: Model,
    next: Callable[[], list[tuple[list[int], int]] | None],
    progress: Callable[[int], object],
    *,
    name: str,
    hash: str,
    dtype: str,
    bos: str,
    sites: Sequence[str],
    context: int,
    prefix: Sequence[int],
    out: str | PathLike[str] | None,
    max_tokens: int | None,
    top: int,
    histogram_every: int,
    batch_tokens: int,
    checkpoint: float,
) -> Survey:
    """Survey a corpus: `next()` gives `(ids, n_bos)` of a batch of documents, None at the end."""

def document_hash(ids: Sequence[int]) -> str:
    """The name of a document of these ids, as extremes give it."""

def reach(model: Model, site: str) -> npt.NDArray[np.float64] | None:
    """`(lowest, highest)` value that every feature of a site can have, `[width, 2]`; None where no bound is known."""

def score(
    model: Model,
    sequences: Sequence[Sequence[int]],
    objective: str,
    free: Sequence[tuple[int, int]] | None = None,
    of: Sequence[int] | None = None,
) -> npt.NDArray[np.float32]:
    """The objective (JSON) of each sequence, `[n]`.

    `free`: start and end of the free tokens of each, where known; `of`: which of a list of objectives is that of each.
    """

def gradient(
    model: Model,
    tokens: Sequence[int],
    objective: str,
    wrt: Sequence[str],
    free: tuple[int, int] | None = None,
) -> tuple[float, list[npt.NDArray[np.float32]]]:
    """The value of an objective (JSON), and its derivative by each site: `[pos, width]` each."""

def search(
    model: Model,
    objective: str,
    contexts: Sequence[tuple[Sequence[int], Sequence[int]]],
    settings: str,
    allowed: bytes,
    tokenizer: Tokenizer | None = None,
    progress: Callable[[int, float | None], object] | None = None,
    of: Sequence[int] | None = None,
) -> str:
    """Run a search and return its result as JSON.

    `contexts` are (before, after) ids; `objective` and `settings` are JSON; `of`: which of a list of objectives is that
    of each context; `allowed` has one byte a token; `tokenizer`, where given, turns away prompts that do not come back
    from decode and encode; `progress(step, best)` is called after each step.
    """
