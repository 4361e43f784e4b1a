"""Other job queues.

Every ``*_app`` module configures one of them by two environment variables, ``BENCHMARK_BROKER``
and ``BENCHMARK_PREFETCH``, and has ``SETTINGS``, a handler that does nothing but count
(``stopwatch``), and ``submit(count)``. ``filling`` runs the last; the peer's own command runs the
worker (``catalogue``).
"""
