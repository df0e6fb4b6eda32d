"""Tests of the floor that tracer, passes and backends stand on."""
