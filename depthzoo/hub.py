"""Models on the Hugging Face Hub, by huggingface_hub's own mixin; the extra ``hub`` installs it."""

from pathlib import Path
from typing import Any

from depthzoo.errors import WeightsError, one_line

try:
    from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
except ImportError:
    raise ImportError("the Hugging Face Hub needs a package: pip install huggingface_hub") from None

FILE = "model.safetensors"
REPOSITORY = "https://github.com/org/depthzoo"
README = """---
{{ card_data }}
---

`{{ model }}` of [depthzoo]({{ repo_url }}): depth in metres from one image.

```python
import depthzoo

model = depthzoo.from_pretrained("{{ repo_id }}")
prediction = depthzoo.Predictor(model)("photo.jpg")
```
{% if terms %}
Terms of the training data: {{ terms }}
{% endif %}"""


class HubModel(
    ModelHubMixin,
    library_name="depthzoo",
    repo_url=REPOSITORY,
    pipeline_tag="depth-estimation",
    model_card_template=README,
):
    """Store a model as the Hub expects it: ``model.safetensors``, ``config.json`` and ``README.md``.

    Args:
        model: a :class:`depthzoo.DepthModel`.
        card: entries of its card; see :meth:`depthzoo.DepthModel.save`.
        repo_id: of the repository, for the README.
    """

    def __init__(self, model: Any, card: dict[str, Any], repo_id: str) -> None:
        self.model, self.card, self.repo_id = model, card, repo_id
        self._hub_mixin_config = {"model": model.name, "arguments": model.arguments}

    def _save_pretrained(self, save_directory: Path) -> None:
        self.model.save(save_directory / FILE, **self.card)

    def generate_model_card(self, *args: Any, **options: Any) -> ModelCard:
        """Return the README."""
        terms = self.card.get("terms") or (self.model.card or {}).get("terms")
        facts = {"model": self.model.name, "repo_id": self.repo_id, "terms": terms}
        return super().generate_model_card(*args, **facts | options)


def download(repo_id: str, **options: Any) -> Path:
    """Download the weights file of a repository of the Hub into huggingface_hub's cache, and return its path.

    Args:
        repo_id: "USER/NAME".
        **options: of ``huggingface_hub.hf_hub_download``, as ``revision``, ``token`` and ``cache_dir``.

    Raises:
        WeightsError: if there is no such repository or file, or it cannot be downloaded.
    """
    try:
        return Path(hf_hub_download(repo_id, FILE, **options))
    except (OSError, ValueError) as error:  # those of huggingface_hub derive from these
        raise WeightsError(
            f"Hugging Face Hub: {repo_id}: cannot download {FILE}: {one_line(error)}"
        ) from error
