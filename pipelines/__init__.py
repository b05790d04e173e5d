"""From captioned pictures to trained models and a report; `pipelines.load(run).sample(prompts)` is the Python door."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline


def load(run: "Path | str") -> "Pipeline":
    """Open a finished run for sampling: `load("runs/scenes").sample(["a red star on a sky background"], seed=0)`."""
    from pipelines.pipeline import load as open_pipeline  # here, so that `import pipelines.cli` stays light

    return open_pipeline(run)
