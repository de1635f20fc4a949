"""How cells are scored: what counts as a change, and the resampling behind the intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deltamend.errors import UsageError, option
from deltamend.scoring.margin import DEFAULT_MARGIN, Margin, parse_margin


@dataclass(frozen=True)
class Settings:
    """How a cell is scored; the same for every cell of a study.

    Attributes:
        margin: how far apart base and fine-tuned must be to count as different, for every task unless `task_margins` has another.
        task_margins: task to a margin of its own.
        chance_corrected: whether scores are moved to (s − chance)/(1 − chance) first, where chance is known.
        draws: number of bootstrap resamples, 100 to 1,000,000.
        seed: seed of the bootstrap, not negative.
        confidence: of the intervals, from 0.5 to below 1.
    """

    margin: Margin = DEFAULT_MARGIN
    task_margins: Mapping[str, Margin] | None = None
    chance_corrected: bool = False
    draws: int = 10_000
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        if not 100 <= self.draws <= 1_000_000:
            raise UsageError(f"{option('draws')}: {self.draws} is out of range; give 100 to 1000000 (10000 is usual)")
        if not 0.5 <= self.confidence < 1:
            raise UsageError(
                f"{option('confidence')}: {self.confidence} is out of range; give a share from 0.5 to below 1, such as 0.95"
            )
        if self.seed < 0:
            raise UsageError(f"{option('seed')}: {self.seed} is negative; give 0 or more")

    def margin_of(self, task: str) -> Margin:
        """The margin of one task."""
        return (self.task_margins or {}).get(task, self.margin)


def make_settings(
    *,
    margin: str | float = "1se",
    task_margins: Mapping[str, str | float] | None = None,
    chance_corrected: bool = False,
    draws: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Settings:
    """Settings from margins as a person writes them.

    Raises:
        UsageError: a value is invalid.
    """
    return Settings(
        margin=parse_margin(str(margin)),
        task_margins={task: parse_margin(str(text)) for task, text in (task_margins or {}).items()},
        chance_corrected=chance_corrected,
        draws=draws,
        seed=seed,
        confidence=confidence,
    )
