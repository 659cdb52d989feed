"""One version of the package under `ratio.py`: reads the name of a pass per line, does it, answers with its seconds.

It runs with any version of the package, so it uses nothing but the public names.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

from baichuan_hf import BaichuanConfig


def main() -> None:
    settings = json.loads(sys.argv[1])
    device = torch.device(settings["device"])
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = BaichuanConfig(**settings["config"])
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).to(device).eval()
    model.generation_config.eos_token_id = None  # every call writes as many tokens
    text = torch.randint(3, config.vocab_size, (1, settings["read"]), device=device)

    def forward() -> None:
        with torch.no_grad():
            model(input_ids=text, use_cache=False)

    def training() -> None:
        model.zero_grad(set_to_none=True)
        model(input_ids=text, labels=text, use_cache=False).loss.backward()

    def decode() -> None:
        model.generate(text, max_new_tokens=settings["written"], do_sample=False)

    passes = {"forward": forward, "training": training, "decode": decode}
    for line in sys.stdin:
        synchronize(device)
        start = time.perf_counter()
        passes[line.strip()]()
        synchronize(device)
        print(time.perf_counter() - start, flush=True)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
