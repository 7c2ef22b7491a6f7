"""The board's side: start a worker, measure it, keep its results. Imports neither torch nor numpy nor onnx."""
