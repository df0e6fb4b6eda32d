"""What knows torch and is shared by tracer, passes and backends: one floor above the IR, below those three."""
