"""Fields as files that other programs read: safetensors, ONNX and torch.export programs. Nothing of the host in here."""
