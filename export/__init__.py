"""Workstation only: PyTorch in; ONNX graphs, onnxruntime-training artifacts and inference models out."""
