"""Reads a checkpoint by transformers in a process of its own, with this package or without; `readers` starts it."""

import importlib
import json
import sys
from typing import Any

import torch


@torch.inference_mode()
def main(order: dict[str, Any]) -> None:
    """`order`: `folder`, `result` (file to write), `package` (or only what comes with transformers), `remote_code`,
    `adapter` (folder or None), `ids`, `prompts` (token ids, (n, T) and (n, t)) and `count` of tokens to write."""
    if order["package"]:
        importlib.import_module("baichuan_hf")
    else:
        sys.modules["baichuan_hf"] = None  # type: ignore[assignment]  # any import of it fails
    from transformers import AutoModelForCausalLM

    options = {"trust_remote_code": True} if order["remote_code"] else {}
    model = AutoModelForCausalLM.from_pretrained(order["folder"], dtype=torch.float32, **options).eval()
    if order["adapter"]:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, order["adapter"])
    prompts = torch.tensor(order["prompts"])
    settings = {"do_sample": False, "max_new_tokens": order["count"], "eos_token_id": None, "repetition_penalty": 1.0}
    written = model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), **settings)
    logits = model(input_ids=torch.tensor(order["ids"])).logits
    torch.save({"logits": logits, "tokens": written[:, prompts.shape[1] :].tolist()}, order["result"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
