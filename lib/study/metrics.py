"""What is measured: a metric's name, its unit, and which way is better."""

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

Values = TypeVar("Values")  # one number, or a pandas column of them


@dataclass(frozen=True)
class Metric:
    """A metric, told once; results carry its unit and direction in their columns.

    Attributes:
        name: such as "accuracy".
        unit: such as "%"; empty where it has none.
        direction: whether a "higher" or a "lower" value is the better one.
    """

    name: str
    unit: str = ""
    direction: Literal["higher", "lower"] = "higher"

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value is the better one."""
        return self.direction == "higher"

    @property
    def label(self) -> str:
        """The name with its unit, for an axis or a column."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def retained(self, value: Values, base: float) -> Values:
        """How much of the base's quality is left, in percent: value / base, or base / value.

        NaN where higher is better and the base scores 0: of nothing no share is left.
        """
        if self.higher_is_better and base == 0:
            return value * math.nan
        return 100 * value / base if self.higher_is_better else 100 * base / value
