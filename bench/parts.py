"""Parts that all results share: strict models, the machine, and the self-test that was passed."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """Base of all parts: nothing unknown is read, nothing changes after."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SelfTest(Frozen):
    """The artefact's own self-test, passed before any timing; a miss gives no result."""

    max_rel_error: float = Field(description="max|a-b| / max|reference| over logits")
    tolerance: float
    positions: int = Field(description="logit rows compared, prefill and cached decode")
    greedy_tokens: int = Field(description="greedy tokens equal to the reference's")


class Gpu(Frozen):
    """One GPU as its driver tells it."""

    name: str
    driver: str
    memory_bytes: int
    clock_mhz: int | None
    max_clock_mhz: int | None
    ecc: bool | None
    throttled: bool | None = Field(description="whether clocks are held down now")


class Fingerprint(Frozen):
    """The machine and the software, without user name, host name or path."""

    cpu: str
    cpu_flags: dict[str, bool]
    cores_usable: int
    cores_total: int
    memory_bytes: int | None
    load_at_start: float | None = Field(description="1 minute load average")
    governor: str | None = Field(description="CPU frequency governor; null where unreadable")
    microcode: str | None = None
    turbo: bool | None = Field(default=None, description="null where unreadable")
    smt: bool | None = Field(default=None, description="two threads a core; null where unreadable")
    cpu_quota: float | None = Field(default=None, description="cores a cgroup allows; null: all")
    memory_limit: int | None = Field(default=None, description="bytes a cgroup allows; null: all")
    temperature: float | None = Field(default=None, description="hottest zone, Celsius")
    read_bytes_per_second: float | None = Field(
        default=None, description="plain reading of memory by all threads; null: not measured"
    )
    gpus: list[Gpu] = []
    system: str
    python: str
    packages: dict[str, str]
