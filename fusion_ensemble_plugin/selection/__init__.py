"""Choosing members, weights and a temperature by what a FusionBench task pool measures."""
