"""What a run may be told besides its manifest; frozen, and part of the run's record."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from flowmrd.cytometry.events import DataState


class Settings(BaseModel):
    """Settings that can change a number. The number of workers is not among them: it must not matter."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    seed: int = Field(default=1, ge=0)
    state: DataState = Field(default=DataState.RAW, strict=False)
    scaled_range: tuple[float, float] | None = Field(default=None, strict=False)
    matrix: str = "file"
    dataset: int | None = Field(default=None, ge=1)
    templates: str | None = None
    reference: str | None = None
    membership: bool = False
