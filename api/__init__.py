"""The calls a user makes, each of them a few lines that connect tracer, passes and backends."""
