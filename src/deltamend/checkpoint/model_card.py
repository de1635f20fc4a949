"""The README.md of a repaired checkpoint: where it comes from and what was done, from the manifest alone."""

from __future__ import annotations

from pathlib import Path

import yaml
from jinja2 import Environment, StrictUndefined

from deltamend.checkpoint.manifest import Manifest
from deltamend.machine.escaping import markdown_code, markdown_text
from deltamend.machine.yaml_text import MAX_CHARACTERS, YamlError, parse_yaml

_TEMPLATE = """\
---
{{ front_matter }}---

# {{ manifest.finetuned.name | text }}, repaired with {{ manifest.method | text }}

Written by deltamend {{ manifest.deltamend }} from two checkpoints, without data and without training. Numbers for every
tensor, and hashes of inputs and outputs, are in `deltamend.json`; `deltamend verify` checks the files against it.

| | |
|---|---|
| base | {{ manifest.base.name | code }} |
| fine-tuned | {{ manifest.finetuned.name | code }} |
| method | {{ manifest.method | code }}{% for key, value in manifest.parameters.items() %}, {{ (key ~ '=' ~ value) | code }}{% endfor %} |
| matrices | {{ filtered|length }} of {{ manifest.tensors|length }} tensors were given to the method; the others are as fine-tuned, {% if manifest.options.out_dtype %}cast to {{ manifest.options.out_dtype }}{% else %}bit for bit{% endif %} |
| kept energy | {{ "%.2f"|format(100 * manifest.kept_energy) }} % of the squared Frobenius norm of the update |
{% if manifest.coverage and manifest.coverage.share < 1 %}| repaired | {{ manifest.coverage.repaired }} of {{ manifest.coverage.matrices }} matrices, {{ "%.2f"|format(100 * manifest.coverage.share) }} % of their entries |
{% endif %}{% if manifest.is_adapter %}| output | a PEFT LoRA adapter to the base: load the base, in float32 to lose nothing, and then `PeftModel.from_pretrained(base, folder)` |
{% endif %}| lost in rounding | {{ "%.2f"|format(100 * manifest.realised_error) }} % of the kept update, by Frobenius norm, in casting to the stored dtypes{% if manifest.undone_by_rounding %}: {{ "%.0f"|format(100 * manifest.undone_by_rounding) }} % of what was taken away{% endif %} |

Whether this helped is not known from the weights alone: measure the model on what it had lost, and on its own task.
{% if has_own_card %}
The card of the fine-tuned model is in `{{ own_card }}`.
{% endif -%}
"""


def render_model_card(manifest: Manifest, *, own_card: str | None, license_name: str | None) -> str:
    """Render the card.

    Args:
        manifest: what was done.
        own_card: name of the file that holds the fine-tuned model's own card, if it has one.
        license_name: the licence the fine-tuned model's card names, which the output inherits.
    """
    front = {
        "base_model": [manifest.finetuned.name, manifest.base.name],
        "library_name": "peft" if manifest.is_adapter else "transformers",
        "tags": ["deltamend", manifest.method],
    } | ({"license": license_name} if license_name else {})
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - Markdown
    environment.filters.update(text=markdown_text, code=markdown_code)
    filtered = [tensor for tensor in manifest.tensors if tensor.action == "filter"]
    return environment.from_string(_TEMPLATE).render(
        manifest=manifest,
        front_matter=yaml.safe_dump(front, sort_keys=True, allow_unicode=True),
        filtered=filtered,
        has_own_card=own_card is not None,
        own_card=own_card,
    )


def license_of_card(path: Path) -> str | None:
    """The `license` field of a model card's front matter; None where there is none, or the front matter cannot be read."""
    with path.open("rb") as file:
        text = file.read(4 * MAX_CHARACTERS).decode("utf-8", errors="replace")
    if not text.startswith("---\n"):
        return None
    front, separator, _ = text[4:].partition("\n---")
    try:
        fields = parse_yaml(front) if separator else None
    except YamlError:
        return None
    found = fields.get("license") if isinstance(fields, dict) else None
    return found if isinstance(found, str) else None
