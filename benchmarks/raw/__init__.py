"""The client libraries used directly, each as its own documentation says for at-least-once."""
