"""`loss`: the policy-gradient objective."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import ConfigDict, model_validator

from parl.config.base import ConfigModel, NonNegFloat, PositiveFloat, refuse_unknown_keys

ShippedLoss = Literal["kimi_k2_5", "grpo", "dapo", "gspo"]


class Loss(ConfigModel):
    """The policy-gradient objective (docs/reference/losses.md)."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    type: str = "kimi_k2_5"
    """kimi_k2_5, grpo, dapo (grpo's clip, and groups with equal episodes are left out), gspo (one
    ratio for a whole trace), or the name of a plugin's loss, whose knobs are further keys of this
    section."""
    # A narrower window, -.2 to .25, made no difference on the quickstart (.977 and .971 against
    # .978 and .965).
    alpha: float = -0.5
    """kimi_k2_5: tokens whose log-ratio is below alpha get no policy gradient (eq. 1)."""
    beta: float = 0.5
    """kimi_k2_5: tokens whose log-ratio is above beta get no policy gradient (eq. 1)."""
    tau: NonNegFloat = 0.01
    """kimi_k2_5: weight of the squared log-ratio."""
    clip_low: PositiveFloat = 0.2
    """grpo, dapo: PPO's lower clip. gspo: that of the trace's ratio, 0.0003 unless given."""
    clip_high: PositiveFloat = 0.28
    """grpo, dapo: PPO's upper clip. gspo: 0.0004 unless given."""
    entropy_bonus: NonNegFloat = 0.0
    """Weight of the entropy, which is added to the objective."""
    entropy_floor: PositiveFloat | None = None
    """The bonus acts only while the entropy measured in the step before is below this (nats per
    token)."""
    denominator: Literal["batch", "problem"] = "batch"
    """N of eq. 1: tokens of the whole batch, or of each problem (then averaged over problems)."""

    @model_validator(mode="before")
    @classmethod
    def _clips_of_gspo(cls, raw: Any) -> Any:
        """Give GSPO its own default clips.

        A ratio that is a mean over many tokens stays near 1: PPO's clips would never bind
        (2507.18071, section 5.1).
        """
        if isinstance(raw, dict) and raw.get("type") == "gspo":
            return {"clip_low": 3e-4, "clip_high": 4e-4, **raw}
        return raw

    @model_validator(mode="after")
    def _floor_has_a_bonus(self) -> Loss:
        if self.entropy_floor is not None and not self.entropy_bonus:
            raise ValueError(
                "entropy_floor without entropy_bonus does nothing; set loss.entropy_bonus, "
                "say to 0.01"
            )
        return self

    @model_validator(mode="after")
    def _window(self) -> Loss:
        if not self.alpha < 0 < self.beta:
            raise ValueError(
                f"alpha={self.alpha} and beta={self.beta}: eq. 1 needs alpha < 0 < beta"
            )
        return self

    @model_validator(mode="after")
    def _no_unknown_key(self) -> Loss:
        # A plugin's loss checks its own knobs; the shipped ones have all theirs above.
        refuse_unknown_keys(self, get_args(ShippedLoss))
        return self
