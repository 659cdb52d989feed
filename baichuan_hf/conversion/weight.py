"""A tensor that is not in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Weight:
    """A tensor that is not in memory: its shape and dtype on the meta device, and how to read it."""

    meta: Tensor
    read: Callable[[], Tensor]

    def then(self, function: Callable[[Tensor], Tensor]) -> Weight:
        """What `function` makes of it, computed when it is read."""
        return Weight(function(self.meta), lambda: function(self.read()))
