"""What runs of us in vLLM's workers: how new weights come into the model.

In: the path of a safetensors file, through vLLM's API for RL. Out: a model that computes with these weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from safetensors.torch import load_file
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

TRANSFER = "parl"
"""Name of this way in vLLM's registry."""


class WorkerExtension:
    """Empty: a worker imports this module to find it, and so knows the class below."""


@dataclass
class _Init(WeightTransferInitInfo):
    pass


@dataclass
class _Update(WeightTransferUpdateInfo):
    path: str


class FileTransfer(WeightTransferEngine[_Init, _Update]):
    """Reads new weights from a file, on a CPU and on a GPU."""

    init_info_cls = _Init
    update_info_cls = _Update

    def init_transfer_engine(self, init_info: _Init) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: _Update) -> None:
        self.model.load_weights(load_file(update_info.path).items())

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead):
                # On a CPU the head computes with a packed copy of its weights. vLLM does not pack it again where the
                # weights are the embedding's, and would go on with the old ones.
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        pass


WeightTransferEngineFactory.register_engine(TRANSFER, FileTransfer)
