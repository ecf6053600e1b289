"""What is kept of a trace's reuse beside a model that was made, not trained."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from tec.quantities import Count

_Share = Annotated[float, Field(ge=0, le=1)]


class RoutingSummary(BaseModel):
    """Statistics of a trace; `tec.locality.summarise` makes them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: Count
    overlap_8: _Share = Field(
        description="share of the selected experts that one of the 8 tokens before selected too"
    )
    overlap_8_uniform: _Share = Field(description="the same, expected of uniformly random routing")
    median_reuse: Count | None = Field(
        description="median tokens between two uses of an expert; null where none is used twice"
    )
    next_token: _Share = Field(description="share of the selections that the token before made too")
    next_token_independent: _Share | None = Field(
        default=None,
        description="the same, expected of independent tokens that want each expert as often; "
        "null in earlier records",
    )
    effective_experts: float = Field(
        ge=1, description="exponential of the entropy of a layer's selections, mean over layers"
    )
