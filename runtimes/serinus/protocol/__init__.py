"""The Open Inference Protocol: bytes to tensors and back. No input or output, no asyncio."""
