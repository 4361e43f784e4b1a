"""How fast synmanager is, measured against its own drivers and against other job queues.

``python -m benchmarks --help`` says how to run it, ``benchmarks/README.md`` how it measures.
"""
