"""What is told about a run while it goes on: speed, log line, progress bar, metrics.jsonl, TensorBoard, W&B.

Everything here takes plain numbers and runs without torch. Only rank 0 uses it.
"""
