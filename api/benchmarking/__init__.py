"""How quick a model is: measured in processes of their own, compared, told."""
