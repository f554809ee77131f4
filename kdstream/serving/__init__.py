"""A live page on an exported model: sherpa-onnx decodes, aiohttp serves, and torch is not needed."""
