"""onnxruntime-training: operators without a gradient replaced, its artifacts, the gradient graph rewritten."""
