"""The step compiler: forward.onnx and the names of the trainables in, a planned step program out."""
