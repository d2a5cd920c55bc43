from typing import Any

class LoadConfig:
    load_format: str | Any

class VllmConfig:
    load_config: LoadConfig
    additional_config: dict[str, Any] | Any

def get_current_vllm_config_or_none() -> VllmConfig | None: ...
