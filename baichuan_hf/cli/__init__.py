"""The command `baichuan-hf`."""
