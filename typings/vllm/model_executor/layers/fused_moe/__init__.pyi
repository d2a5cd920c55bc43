from typing import Any

from torch.nn import Module

class ExpertMapManager:
    def map_global_to_local(self, global_id: int) -> int: ...

class RoutedExperts(Module):
    moe_config: Any
    global_num_experts: int
    expert_map_manager: ExpertMapManager
    ckpt_gate_proj_name: str
    ckpt_down_proj_name: str
    ckpt_up_proj_name: str | None
    def weight_loader(
        self,
        param: Any,
        loaded_weight: Any,
        weight_name: str,
        shard_id: str,
        expert_id: int,
        return_success: bool = False,
    ) -> bool | None: ...
