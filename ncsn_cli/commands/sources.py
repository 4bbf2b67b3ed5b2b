"""The papers that a run relies on, as the docstrings of its parts name them."""

from __future__ import annotations

import inspect
import re

from hydra.utils import get_object
from markupsafe import Markup, escape

from ncsn_cli.commands.config import Config
from ncsn_cli.runs.records import flatten

_PLACES = {
    "arXiv": (r"arXiv:(\d{4}\.\d{4,5})", "https://arxiv.org/abs/"),
    "doi": (r"doi:(10\.[^\s,;]*[^\s,;.])", "https://doi.org/"),
}
"""How papers are named in a docstring, and where they are."""


def sources_of(config: Config) -> dict[str, Markup]:
    """Return what the docstrings of this package's classes in ``config`` say under ``Source:``.

    The keys are those of the groups, such as ``sampler`` and ``metric.wasserstein``.
    """
    found = {}
    for key, target in flatten(config).items():
        # Code of the user's own is not imported for this.
        if not key.endswith("._target_") or not str(target).startswith("ncsn_cli."):
            continue
        doc = inspect.getdoc(get_object(target)) or ""
        match = re.search(r"Source: (.+?)(?:\n\n|\Z)", doc, re.DOTALL)
        if match:
            sentence = re.split(r"\. (?=[A-Z])", " ".join(match[1].split()))[0]
            found[key.removesuffix("._target_")] = _with_links(sentence.removesuffix(".") + ".")
    return found


def _with_links(text: str) -> Markup:
    page = str(escape(text.replace("``", "")))
    for name, (pattern, address) in _PLACES.items():
        page = re.sub(pattern, rf'<a href="{address}\1">{name}:\1</a>', page)
    return Markup(page)  # escaped above
