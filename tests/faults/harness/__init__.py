"""What the fault suite runs on: real brokers and processes, a proxy, journals and their checker."""
