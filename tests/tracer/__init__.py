"""The tracer: models, texts, traces and what stands in their way."""
