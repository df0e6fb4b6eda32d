"""The format of llama.cpp: what is in the file, and what llama.cpp makes of it."""
