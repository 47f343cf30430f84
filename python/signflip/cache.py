"""Values of sites by name, as a pass gives them, and the names' short forms."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from signflip.errors import SiteError

_SHORT = {
    "embed": "hook_embed",
    "pos_embed": "hook_pos_embed",
    "normalized": "ln_final.hook_normalized",
    **{name: f"blocks.{{}}.hook_{name}" for name in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")},
    **{name: f"blocks.{{}}.attn.hook_{name}" for name in ("q", "k", "v", "z", "rot_q", "rot_k", "pattern")},
    **{name: f"blocks.{{}}.mlp.hook_{name}" for name in ("pre", "pre_linear", "post")},
}


def get_act_name(name: str, layer: int | None = None) -> str:
    """The full name of a site from TransformerLens' short form, such as `("post", 5)`.

    Raises
    ------
    SiteError
        If the short name is unknown or lacks its layer.
    """
    if not isinstance(name, str):
        raise SiteError(f"site {name!r}: expected a name")
    if name in _SHORT and ("{}" not in _SHORT[name] or layer is not None):
        return _SHORT[name].format(layer)
    if name.startswith(("hook_", "blocks.", "ln_final.")):
        return name
    raise SiteError(f"site ({name!r}, {layer}): expected a short name of {', '.join(_SHORT)} and a layer")


def full_name(key: Any) -> str:
    """The full name of a site from a name, or from a short name and a layer.

    Raises
    ------
    SiteError
        If it is neither.
    """
    if not isinstance(key, tuple):
        return get_act_name(key)
    if len(key) != 2:
        raise SiteError(f"site {key!r}: expected a name, or a short name and a layer")
    return get_act_name(*key)


class ActivationCache(Mapping[str, Any]):
    """Values of sites by name; `cache["blocks.5.mlp.hook_post"]` or `cache["post", 5]`."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getitem__(self, key: str | tuple[str, int]) -> Any:
        name = full_name(key)
        if name not in self._values:
            near = difflib.get_close_matches(name[:256], list(self._values), 4, 0)
            raise SiteError(f"site {name!r}: not in this cache; the nearest there are {', '.join(near) or 'none'}")
        return self._values[name]

    def __contains__(self, key: object) -> bool:
        try:
            self[key]  # type: ignore[index]
        except SiteError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"ActivationCache of {len(self)} sites"


@dataclass(frozen=True)
class HookPoint:
    """What a hook is told of where it is."""

    name: str

    def layer(self) -> int:
        """The block's index.

        Raises
        ------
        SiteError
            If the site is in no block.
        """
        match = re.match(r"blocks\.(\d+)\.", self.name)
        if match is None:
            raise SiteError(f"site {self.name!r}: is in no block")
        return int(match[1])
