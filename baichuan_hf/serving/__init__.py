"""Baichuan in the engines that serve models."""
