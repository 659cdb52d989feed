"""The recipe of the bundled checkpoints, from packages of text to a folder: `python -m baichuan_hf.training.tiny`."""
