"""Adapters of PEFT, merged into the weights of the model that they came with."""
