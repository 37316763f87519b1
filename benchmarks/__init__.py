"""Measurements, each in one run beside FusionBench's own ensemble or the bare members.

``python -m benchmarks`` runs all of them, ``python -m benchmarks.NAME`` one. Each prints a table and writes its figures
and a plot to ``benchmarks/results``; ``python -m benchmarks.page`` puts them into the documentation.
"""
