"""Fields as files that other programs read: safetensors, ONNX models, torch.export programs."""
