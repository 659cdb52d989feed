"""transformers' own server, `transformers serve`, for our models; it needs the extra `serve`."""

from __future__ import annotations

import time
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cli.serve import Serve
from transformers.cli.serving import model_manager

from ..checkpoints import resolve_model
from ..conversion.lora import is_adapter
from ..model.configuration_baichuan import BaichuanConfig


class ModelManager(model_manager.ModelManager):
    """transformers' keeper of the loaded models, for ours and their adapters too.

    That one looks classes up in the namespace of transformers, and lists the models of the Hub's cache even when it
    serves another only; where there is no cache, it fails.
    """

    def _load_processor(self, model_id_and_revision: str, **options: Any) -> Any:
        name, revision = model_id_and_revision.split("@", 1)
        return super()._load_processor(f"{resolve_model(name)}@{revision}", **options)

    def _load_model(
        self, model_id_and_revision: str, tqdm_class: type | None = None, progress_callback: Any = None, **gguf: Any
    ) -> Any:
        name, revision = model_id_and_revision.split("@", 1)
        name = resolve_model(name)
        options = {"revision": revision, "trust_remote_code": self.trust_remote_code}
        is_ours = is_adapter(name) or isinstance(AutoConfig.from_pretrained(name, **options, **gguf), BaichuanConfig)
        if not is_ours:
            return super()._load_model(model_id_and_revision, tqdm_class, progress_callback, **gguf)
        if self.quantization is not None:
            options["quantization_config"] = self.get_quantization_config()
        return AutoModelForCausalLM.from_pretrained(
            name,
            attn_implementation=self.attn_implementation,
            dtype=self.dtype,
            device_map=self.device,
            tqdm_class=tqdm_class,
            **options,
        )

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
        """The model that alone is served; without one, those of the cache."""
        if self.force_model is None:
            return super().get_gen_models(cache_dir)
        return [{"id": self.force_model, "object": "model", "owned_by": "", "created": int(time.time())}]


def server_command() -> type[Serve]:
    """transformers' command, with our `ModelManager`."""
    model_manager.ModelManager = ModelManager
    return Serve
