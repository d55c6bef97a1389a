"""The small guest image: a Linux of a few megabytes that boots in seconds under emulation."""
