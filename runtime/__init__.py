"""The board's side: start a worker, measure it, keep its results. Imports no torch, no numpy and no onnx."""
