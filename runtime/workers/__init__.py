"""The processes that compute: how they are started, what they say, the one on onnxruntime-training."""
