"""GGUF: one file for llama.cpp and what is built on it."""
