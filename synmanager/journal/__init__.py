"""The journal: what happened to jobs, written by those who run them, read by those who watch.

It is a view of the queues and never their truth: no trouble with it fails a job or delays one.
``docs/journal.md`` has the events.
"""
