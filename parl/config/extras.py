"""The optional packages that a config needs."""

from __future__ import annotations

from parl.config.schema import Config
from parl.core.extras import require


def require_extras(config: Config, needed_by: str) -> None:
    """Raise an error where a package is absent that a run of this config needs.

    It is called before those packages are imported, which takes seconds.

    Raises:
        MissingExtra: it names the extra and the line to type.
    """
    require("train", needed_by=needed_by)
    if config.rollout.backend == "ray":
        require("ray", needed_by="rollout.backend: ray", instead="or set rollout.backend=local")
    if config.train.learner_processes > 1:
        require("ray", needed_by="train.learner_processes > 1", instead="or set it to 1")
    if config.tracking.wandb.mode != "disabled":
        require(
            "wandb",
            needed_by=f"tracking.wandb.mode: {config.tracking.wandb.mode}",
            instead="or set tracking.wandb.mode=disabled",
        )
